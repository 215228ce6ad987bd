//! The JSON document of `sparq plan`.

use std::fmt;

use serde::Serialize;
use sparq::Method;
use sparq_plan::{Lossless, Setup, StepTime};

use crate::model::ModelSource;

/// The JSON document.
#[derive(Serialize)]
pub struct Document {
    pub model: ModelSource,
    pub dtype: &'static str,
    pub setup: Setup,
    /// The error of the fit to the measurements of `--measure`.
    pub measured: Option<Measured>,
    pub context: usize,
    pub batch: usize,
    /// The bytes of the weights on each GPU.
    pub weight_bytes: f64,
    /// The bytes of weights that a step reads, on all GPUs.
    pub read_bytes: f64,
    /// The price of all GPUs per hour.
    pub price_per_hour: Option<f64>,
    pub methods: Vec<Row>,
    pub quality: Option<Quality>,
}

/// The error of the fit to the measurements of `--measure`.
#[derive(Serialize)]
pub struct Measured {
    pub attention_steps: usize,
    pub mean_error: f64,
    pub worst_error: f64,
}

/// The predictions of a method.
#[derive(Clone, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub settings: Method,
    pub label: String,
    /// The bytes of one sequence's cache, on each GPU.
    pub cache_bytes: f64,
    /// The bytes of cache that a step of all sequences moves, on all GPUs.
    pub step_bytes: f64,
    /// `step_bytes` divided by dense attention's.
    pub share_of_dense: f64,
    pub at_batch: Prediction,
    /// Lossless decoding with drafts by this method, `null` but for SparQ.
    pub lossless: Option<Lossless>,
    /// Whether the caches of the batch fit into memory.
    pub fits: bool,
    /// The largest batch that fits, and its step. `None` if not even one sequence fits.
    pub largest: Option<Prediction>,
    /// The number of positions from which SparQ is faster than dense attention at this batch.
    /// `None` for other methods, or if it never is.
    pub break_even: Option<usize>,
}

/// The prediction of a step of a batch.
#[derive(Clone, Copy, Serialize)]
pub struct Prediction {
    pub batch: usize,
    #[serde(flatten)]
    pub parts: StepTime,
    pub step_us: f64,
    pub tokens_per_s: f64,
    /// The price of 10^6 tokens.
    pub price_per_million: Option<f64>,
}

/// The methods of results files, and the cheapest of them.
#[derive(Serialize)]
pub struct Quality {
    pub keep: f64,
    pub candidates: Vec<Candidate>,
    /// The index of the cheapest candidate that keeps enough and fits the model.
    pub cheapest: Option<usize>,
    pub row: Option<Row>,
}

/// A method at a budget, with its scores over all tasks.
#[derive(Serialize)]
pub struct Candidate {
    #[serde(flatten)]
    pub settings: Method,
    pub label: String,
    pub budget: Option<f64>,
    /// The least share of dense attention's score over all tasks and contexts.
    pub kept: f64,
    /// The task and context with that share.
    pub in_task: String,
    /// The number of tasks and contexts compared.
    pub compared: usize,
    /// The predicted step time. `None` if the settings do not fit the model to plan for.
    pub step_us: Option<f64>,
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| format!("{:.1}%", 100.0 * share);
        let budget = |candidate: &Candidate| {
            candidate
                .budget
                .map_or(String::new(), |budget| format!(" at {}", percent(budget)))
        };
        match self.cheapest.and_then(|index| self.candidates.get(index)) {
            Some(found) => write!(
                f,
                "Of {} methods and budgets evaluated, the cheapest that keeps {} of dense attention's \
                 score in every task is {}{}: at least {}, in {}",
                self.candidates.len(),
                percent(self.keep),
                found.label,
                budget(found),
                percent(found.kept),
                found.in_task
            ),
            None => {
                let most = self
                    .candidates
                    .iter()
                    .max_by(|a, b| a.kept.total_cmp(&b.kept));
                write!(
                    f,
                    "None of {} methods and budgets evaluated keeps {} of dense attention's score in \
                     every task",
                    self.candidates.len(),
                    percent(self.keep)
                )?;
                match most {
                    Some(most) => write!(
                        f,
                        "; the most is {} by {}{}, in {}",
                        percent(most.kept),
                        most.label,
                        budget(most),
                        most.in_task
                    ),
                    None => Ok(()),
                }
            }
        }
    }
}
