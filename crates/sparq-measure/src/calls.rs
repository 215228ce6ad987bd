//! Calls to time, and the outputs they keep alive.

use std::any::Any;
use std::fmt;

use anyhow::{Result, anyhow, ensure};
use burn::tensor::{FloatDType, Tensor};

/// Makes one call on the buffer set of this index. It owns the buffers.
pub type Calls = Box<dyn Fn(usize) -> Kept>;

/// The result of a call, kept until the device has finished: a lazy backend may skip work whose
/// result is dropped.
pub struct Kept {
    output: Option<Tensor<4>>,
    _rest: Box<dyn Any>,
}

impl Kept {
    /// Keeps the output of attention, which [`Self::check`] reads.
    pub fn output(output: Tensor<4>) -> Self {
        Self {
            output: Some(output),
            _rest: Box::new(()),
        }
    }

    /// Keeps any other value.
    pub fn rest(rest: impl Any) -> Self {
        Self {
            output: None,
            _rest: Box::new(rest),
        }
    }

    /// Applies `check` to the output, if there is one.
    ///
    /// # Errors
    /// If the device did not compute the output.
    pub fn check(self) -> Result<()> {
        self.output.map_or(Ok(()), check)
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

/// Reads the last element of the tensor. A device that has run out of memory or of another
/// resource continues without computing, very quickly; it reports the error only when read.
///
/// # Errors
/// If the device did not compute the tensor, or if that element is not finite.
pub fn check(tensor: Tensor<4>) -> Result<()> {
    let last = tensor.dims().map(|size| size - 1..size);
    let number = tensor.slice(last).cast(FloatDType::F32).try_into_data();
    let number = number.map_err(|error| {
        // burn's errors are reports of several lines. The last line with text names the cause.
        let report = error.to_string();
        let says = |line: &&str| {
            !line.is_empty() && !line.ends_with(':') && !line.starts_with("No backtrace")
        };
        let cause = report.lines().map(str::trim).rfind(says);
        anyhow!("the device reports: {}", cause.unwrap_or("no cause"))
    })?;
    let finite = number.iter::<f32>().all(f32::is_finite);
    ensure!(finite, "expected a finite output, found {number}");
    Ok(())
}
