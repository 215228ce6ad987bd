//! What a check found.

use std::fmt;

use serde::Serialize;

use crate::{Case, Kind};

/// The largest differences between what a device computed and what is right; `None` for what was not compared.
///
/// A difference that is not a number is infinite, and so null in JSON like one that was not made; `reason` tells them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Differences {
    /// Of the lower ends and steps of a key sketch in bits.
    pub ranges: Option<f32>,
    /// Of the approximate logits at valid positions.
    pub logits: Option<f32>,
    /// Of the approximate probability of the kept positions.
    pub alpha: Option<f32>,
    /// Of the mean of V.
    pub mean_value: Option<f32>,
    /// Of the attention output.
    pub output: Option<f32>,
}

/// What came of one case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The name of the case; the seed of a drawn one.
    pub name: String,
    /// Where it comes from.
    pub kind: Kind,
    /// Its sizes and settings in short, such as "B2 H9/3 d64 S257 r16 k33".
    pub shape: String,
    /// Whether the right codes are in the key sketch. `None` without one, or if the device did not get that far.
    pub codes_equal: Option<bool>,
    /// Whether the right components were chosen. `None` if the device did not get that far.
    pub components_equal: Option<bool>,
    /// Whether the right positions were kept. `None` if the device did not get that far.
    pub sets_equal: Option<bool>,
    /// The largest differences.
    pub differences: Differences,
    /// The difference that is allowed in the output; in a drawn case, where the output came closest to it.
    pub tolerance: f32,
    /// Whether everything was right.
    pub passed: bool,
    /// What was wrong first.
    pub reason: Option<String>,
}

impl Outcome {
    /// The outcome of a reference case of which nothing is known yet.
    pub(crate) fn of(case: &Case) -> Self {
        let (rank, top_k) = (case.config.rank, case.config.top_k);
        let shape = format!("{} r{rank} k{top_k}", case.problem);
        Self::new(case.name.clone(), case.kind, shape)
    }

    /// The outcome of a case of which nothing is known yet.
    pub(crate) fn new(name: String, kind: Kind, shape: String) -> Self {
        Self {
            name,
            kind,
            shape,
            codes_equal: None,
            components_equal: None,
            sets_equal: None,
            differences: Differences::default(),
            tolerance: 0.0,
            passed: true,
            reason: None,
        }
    }

    /// Notes that something was wrong. The first reason stays: what follows from a wrong choice is wrong as well.
    pub(crate) fn fail(&mut self, reason: impl FnOnce() -> String) {
        self.passed = false;
        self.reason.get_or_insert_with(reason);
    }
}

/// What came of all cases on one device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The device, as its backend names it.
    pub device: String,
    /// The type of queries, keys and values.
    pub dtype: String,
    /// How many cases passed.
    pub passed: usize,
    /// How many cases failed.
    pub failed: usize,
    /// The outcomes, in the order of the cases.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Counts the outcomes.
    pub(crate) fn new(device: String, dtype: String, outcomes: Vec<Outcome>) -> Self {
        let passed = outcomes.iter().filter(|outcome| outcome.passed).count();
        Self {
            device,
            dtype,
            passed,
            failed: outcomes.len() - passed,
            outcomes,
        }
    }

    /// Whether there were cases and all of them passed.
    pub fn all_passed(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

impl fmt::Display for Report {
    /// A table with a line for every case, and the counts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: fn(&Outcome) -> &str, least: usize| {
            let widths = self
                .outcomes
                .iter()
                .map(|outcome| text(outcome).chars().count());
            widths.max().unwrap_or(0).max(least)
        };
        let name = width(|outcome| &outcome.name, "case".len());
        let shape = width(|outcome| &outcome.shape, "shape".len());
        writeln!(f, "device {}, {}", self.device, self.dtype)?;
        writeln!(
            f,
            "{:name$}  {:shape$}  set    max diff  result",
            "case", "shape"
        )?;
        for outcome in &self.outcomes {
            let set = match outcome.sets_equal {
                Some(true) => "equal",
                Some(false) => "WRONG",
                None => "-",
            };
            let difference = match outcome.differences.output {
                Some(difference) => format!("{difference:.1e}"),
                None => "-".into(),
            };
            let result = match &outcome.reason {
                None => "pass".to_string(),
                Some(reason) => format!("FAIL: {reason}"),
            };
            let (case, sizes) = (&outcome.name, &outcome.shape);
            writeln!(
                f,
                "{case:name$}  {sizes:shape$}  {set:5}  {difference:>8}  {result}"
            )?;
        }
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}
