//! Running cases on a device.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Device, FloatDType};

use crate::judge::{Precision, judge};
use crate::observe::observe;
use crate::{Case, Outcome, Report};

/// Runs a case on a device, with queries, keys and values in `dtype`, and compares every step with what is right.
///
/// In fp32 and fp64 the file tells what is right: the same codes, components and kept positions, and numbers that differ by less than 1e-4
/// (of the largest one, where that exceeds 1). For fp16 and bf16 the input is rounded to the type, and the results are held to float64
/// arithmetic on the rounded input to the same tolerance; to the output's is added what rounding it to the type costs. As rounding can turn
/// a close choice, a choice then counts as right if it is within 1e-4 of the best one.
///
/// Whatever goes wrong, a panic of the backend included, makes a failed outcome.
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
            "the input has numbers beyond the range of {dtype:?}"
        ));
    };
    // Nothing of what the closure touches is used after a panic.
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

/// [`run`] for all cases; `done` is called after each one, for a progress bar.
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

/// The device, as its backend names it.
pub(crate) fn name(device: &Device) -> String {
    let device = format!("{device:?}");
    let name = device
        .strip_prefix("Device<")
        .and_then(|name| name.strip_suffix('>'));
    name.unwrap_or(&device).to_string()
}

/// What a panic said, in one line.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let words = text.unwrap_or("without a message").split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}
