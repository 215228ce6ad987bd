//! Isolation of measurements: an error or panic in one does not end the others.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;

/// Returns the value of `f`, or its error or panic as text.
pub(crate) fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(panic) => Err(format!("panicked: {}", panic_message(panic.as_ref()))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_turns_errors_and_panics_into_text() {
        assert_eq!(guarded(|| Ok(1)), Ok(1));
        let failed: Result<(), String> = guarded(|| anyhow::bail!("no"));
        assert_eq!(failed, Err("no".into()));
        let panicked: Result<(), String> = guarded(|| panic!("at {}", 7));
        assert_eq!(panicked, Err("panicked: at 7".into()));
    }
}
