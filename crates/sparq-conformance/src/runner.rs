//! Runs reference cases on a device.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Device, FloatDType};

use crate::judge::{Precision, judge};
use crate::observe::observe;
use crate::{Case, Outcome, Report};

/// Runs a case on a device, with queries, keys and values in `dtype`, and compares every result.
///
/// In fp32 and fp64, codes, components and positions must equal those of the file. Numbers may
/// differ by less than 1e-4, times the largest number if that exceeds 1.
///
/// In fp16 and bf16, the inputs are rounded to the type first, and the expected results are those
/// of float64 arithmetic on the rounded inputs. The output's tolerance includes its own rounding.
/// Since rounding can change a close selection, one within 1e-4 of the optimum is right.
///
/// Every error, including a panic of the backend, makes a failed outcome.
pub fn run(case: &Case, device: &Device, dtype: FloatDType) -> Outcome {
    let failed = |reason: String| {
        let mut outcome = Outcome::of(case);
        outcome.fail(|| reason);
        outcome
    };
    let Some(precision) = Precision::of(dtype) else {
        return failed(format!("{dtype:?}: expected F64, F32, F16 or BF16"));
    };
    if !device.supports_dtype(dtype) {
        return failed(format!("the device does not compute in {dtype:?}"));
    }
    let Some(case) = precision.rounded(case) else {
        return failed(format!(
            "the inputs contain numbers out of the range of {dtype:?}"
        ));
    };
    // Nothing that the closure borrows is used after a panic.
    let checked = AssertUnwindSafe(|| {
        let found = observe(&case, device, dtype)?;
        Ok(judge(&case, &found, &precision))
    });
    match catch_unwind(checked) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(reason)) => failed(reason),
        Err(panic) => failed(format!("panic: {}", message(panic.as_ref()))),
    }
}

/// Runs all cases. Calls `done` after each one, for example for a progress bar.
pub fn run_all(
    cases: &[Case],
    device: &Device,
    dtype: FloatDType,
    mut done: impl FnMut(&Outcome),
) -> Report {
    let outcomes = cases.iter().map(|case| {
        let outcome = run(case, device, dtype);
        done(&outcome);
        outcome
    });
    let outcomes = outcomes.collect();
    Report::new(name(device), format!("{dtype:?}"), outcomes)
}

/// Returns the backend's name of the device.
pub(crate) fn name(device: &Device) -> String {
    let device = format!("{device:?}");
    let name = device
        .strip_prefix("Device<")
        .and_then(|name| name.strip_suffix('>'));
    name.unwrap_or(&device).to_string()
}

/// Returns the message of a panic in one line.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let words = text.unwrap_or("without a message").split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}
