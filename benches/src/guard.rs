//! What a backend does to one measurement must not cost the others.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;

/// What `f` returns, an error or a panic of a backend as text: it must not cost the rows before it.
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
    fn a_panic_becomes_text() {
        assert_eq!(guarded(|| Ok(1)), Ok(1));
        let failed: Result<(), String> = guarded(|| anyhow::bail!("no"));
        assert_eq!(failed, Err("no".into()));
        let panicked: Result<(), String> = guarded(|| panic!("at {}", 7));
        assert_eq!(panicked, Err("panicked: at 7".into()));
    }
}
