//! Random cases, judged by float64 arithmetic on the host.
//!
//! A case is drawn from a number, its seed: shapes, settings, types, memory layouts, ragged lengths, and a way to fill a cache: prefills, single
//! tokens, rolling back, with decode steps in between. Rows are ordinary, or made of what breaks kernels: equal scores,
//! NaN, infinities, subnormal and huge numbers. At each decode step the kept positions have to be a best choice, and alpha, the outputs of
//! SparQ and of dense attention, and at last the contents of the cache what follows from the input.

mod draws;
mod huge;
mod layout;
mod mirror;
mod plan;
mod rows;
mod session;
mod verdict;

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Device, FloatDType};

use crate::runner::{message, name};
use crate::{Differences, Kind, Outcome, Report};
use draws::Draws;
use huge::Huge;
use plan::Plan;

/// How large random cases are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// At most 330 positions and 64 kept: seconds for a hundred on a CPU, and little enough for a tool that watches every access to memory.
    Small,
    /// Up to 6000 positions and 4096 kept.
    Medium,
    /// 2^17 to 2^20 positions of one or two heads; some GiB of the host's memory.
    Large,
    /// A cache of more than 2^32 elements, filled with numbers drawn on the device: 30 GiB there and 8 on the host.
    Huge,
}

/// What random cases have in common.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    /// How large they are.
    pub size: Size,
    /// The type of the cache; `None` draws one that the device has for each case.
    pub dtype: Option<FloatDType>,
}

impl Random {
    /// Runs the case of one seed. Whatever goes wrong, a panic of the backend included, makes a failed outcome, named after the seed.
    pub fn run(&self, seed: u64, device: &Device) -> Outcome {
        let mut draws = Draws::new(seed);
        let known = |dtype| device.supports_dtype(dtype);
        let mut outcome = Outcome::new(seed.to_string(), Kind::Random, String::new());
        if let Some(dtype) = self.dtype.filter(|&dtype| !known(dtype)) {
            outcome.fail(|| format!("the device does not compute in {dtype:?}"));
            return outcome;
        }
        // Nothing of what the closures touch is used after a panic.
        let played = if self.size == Size::Huge {
            let huge = Huge::new(self.dtype.unwrap_or(FloatDType::F16));
            outcome.shape = huge.describe();
            catch_unwind(AssertUnwindSafe(|| huge.play(&mut draws, device)))
        } else {
            let plan = Plan::draw(&mut draws, self.size, self.dtype, known);
            outcome.shape = plan.describe();
            catch_unwind(AssertUnwindSafe(|| {
                session::play(&plan, &mut draws, device)
            }))
        };
        match played {
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

    /// [`Random::run`] for `count` seeds from `first`; `done` is called after each one.
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
