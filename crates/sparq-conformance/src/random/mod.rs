//! Random cases, judged by float64 arithmetic on the host.
//!
//! A seed determines the whole case: shapes, settings, types, memory layouts, ragged lengths, and
//! the operations on the cache: prefills, single tokens, truncation, and decode steps in between.
//! The content of a batch head is ordinary, or likely to break kernels: equal scores, NaN,
//! infinities, subnormal and huge numbers.
//!
//! A prefill of other sizes, in the same types, is judged after that.
//!
//! At each decode step, the selected positions must be optimal. alpha and the outputs of SparQ, of
//! other heads that take its positions, and of dense attention must follow. In the end the buffers
//! of the cache are compared.

mod content;
mod huge;
mod layout;
mod mirror;
mod plan;
mod rng;
mod session;
mod verdict;

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Device, FloatDType};

use crate::prefill::Prefill;
use crate::runner::{message, name};
use crate::{Differences, Kind, Outcome, Report};
use huge::Huge;
use plan::Plan;
pub(crate) use rng::Rng;
pub(crate) use verdict::Worst;

/// The size of random cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// At most 330 positions, of which 64 are selected. A hundred cases take seconds on a CPU, and
    /// memory checkers can run them.
    Small,
    /// Up to 6000 positions, of which 4096 are selected.
    Medium,
    /// 2^17 to 2^20 positions of one or two KV heads. Takes several GiB of host memory.
    Large,
    /// A cache of more than 2^32 elements, filled with random numbers of the device. Takes 30 GiB
    /// on the device and 8 GiB on the host.
    Huge,
}

/// The settings that all random cases share.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    /// The size.
    pub size: Size,
    /// The type of the cache. `None` draws a type that the device supports for each case.
    pub dtype: Option<FloatDType>,
}

impl Random {
    /// Runs the case of one seed, which becomes its name. Every error, including a panic of the
    /// backend, makes a failed outcome.
    pub fn run(&self, seed: u64, device: &Device) -> Outcome {
        let mut rng = Rng::new(seed);
        let known = |dtype| device.supports_dtype(dtype);
        let mut outcome = Outcome::new(seed.to_string(), Kind::Random, String::new());
        if let Some(dtype) = self.dtype.filter(|&dtype| !known(dtype)) {
            outcome.fail(|| format!("the device does not compute in {dtype:?}"));
            return outcome;
        }
        // Nothing that the closures borrow is used after a panic.
        let done = if self.size == Size::Huge {
            let huge = Huge::new(self.dtype.unwrap_or(FloatDType::F16));
            outcome.shape = huge.describe();
            catch_unwind(AssertUnwindSafe(|| huge.run(&mut rng, device)))
        } else {
            let plan = Plan::draw(&mut rng, self.size, self.dtype, known);
            outcome.shape = plan.describe();
            catch_unwind(AssertUnwindSafe(|| {
                let decoded = session::run(&plan, &mut rng, device)?;
                let prefill = Prefill::draw(&mut rng, self.size, plan.dtype, plan.query);
                let prefilled = prefill.run(&mut rng, device);
                let prefilled = prefilled.map_err(|reason| format!("prefill {prefill}: {reason}"));
                Ok(decoded.and(prefilled?))
            }))
        };
        match done {
            Ok(Ok(worst)) => {
                outcome.sets_equal = Some(true);
                outcome.tolerance = worst.allowed as f32;
                outcome.differences = Differences {
                    alpha: Some(worst.alpha as f32),
                    output: Some(worst.output as f32),
                    ..Differences::default()
                };
            }
            Ok(Err(reason)) => outcome.fail(|| reason),
            Err(panic) => outcome.fail(|| format!("panic: {}", message(panic.as_ref()))),
        }
        outcome
    }

    /// Runs `count` cases with consecutive seeds. Calls `done` after each one.
    pub fn run_all(
        &self,
        first: u64,
        count: u64,
        device: &Device,
        mut done: impl FnMut(&Outcome),
    ) -> Report {
        let outcomes = (0..count).map(|i| {
            let outcome = self.run(first.wrapping_add(i), device);
            done(&outcome);
            outcome
        });
        let outcomes = outcomes.collect();
        let dtype = self
            .dtype
            .map_or("mixed".into(), |dtype| format!("{dtype:?}"));
        Report::new(name(device), dtype, outcomes)
    }
}
