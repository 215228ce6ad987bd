//! The results of a check.

use std::fmt;

use serde::Serialize;

use crate::{Case, Kind};

/// The largest differences from the expected results, or `None` if not compared.
///
/// A NaN counts as an infinite difference. In JSON both an infinite and a missing difference are
/// null; `reason` distinguishes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Differences {
    /// Of the zero points and scales of a key sketch of codes.
    pub ranges: Option<f32>,
    /// Of the approximate logits at valid positions.
    pub logits: Option<f32>,
    /// Of alpha.
    pub alpha: Option<f32>,
    /// Of the mean of V.
    pub mean_value: Option<f32>,
    /// Of the attention output.
    pub output: Option<f32>,
}

/// The result of one case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The name of the case, or the seed of a random case.
    pub name: String,
    /// The origin of the case.
    pub kind: Kind,
    /// Sizes and settings in short, such as "B2 H9/3 d64 S257 r16 k33".
    pub shape: String,
    /// True if the codes of the key sketch are right. `None` without codes, or if the case failed
    /// before.
    pub codes_equal: Option<bool>,
    /// True if the selected components are right. `None` if the case failed before.
    pub components_equal: Option<bool>,
    /// True if the selected positions are right. `None` if the case failed before.
    pub sets_equal: Option<bool>,
    /// The largest differences.
    pub differences: Differences,
    /// The allowed difference of the output. In a random case, the one of the element whose
    /// difference came closest to it.
    pub tolerance: f32,
    /// True if every result is right.
    pub passed: bool,
    /// The first wrong result.
    pub reason: Option<String>,
}

impl Outcome {
    /// Returns the outcome of a reference case before it runs.
    pub(crate) fn of(case: &Case) -> Self {
        let (rank, top_k) = (case.config.rank, case.config.top_k);
        let shape = format!("{} r{rank} k{top_k}", case.problem);
        Self::new(case.name.clone(), case.kind, shape)
    }

    /// Returns the outcome of a case before it runs.
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

    /// Marks the case as failed. Keeps the first reason, since a wrong selection makes later
    /// results wrong too.
    pub(crate) fn fail(&mut self, reason: impl FnOnce() -> String) {
        self.passed = false;
        self.reason.get_or_insert_with(reason);
    }
}

/// The results of all cases on one device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The device, as its backend names it.
    pub device: String,
    /// The type of queries, keys and values.
    pub dtype: String,
    /// The number of cases that passed.
    pub passed: usize,
    /// The number of cases that failed.
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

    /// Returns the report of this one's cases and then another's, on the same device.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.passed += other.passed;
        self.failed += other.failed;
        self.outcomes.extend(other.outcomes);
        self
    }

    /// Returns whether all cases passed, and there was at least one.
    pub fn all_passed(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

impl fmt::Display for Report {
    /// Writes a table with one row per case, and the counts.
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
