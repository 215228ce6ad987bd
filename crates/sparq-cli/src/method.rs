//! The arguments that choose how a decode step attends.

use anyhow::Result;
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use sparq::{Auto, Components, GroupScore, MeanValue, Method, Sketch, SparqConfig};

use crate::args::named;
use crate::model::Description;

/// A share of head_dim that ranks well at every sketch: r = d/4.
const DEFAULT_RANK_SHARE: usize = 4;

/// The paper's k.
const DEFAULT_TOP_K: usize = 128;

/// The methods by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MethodName {
    /// SparQ where the cost model expects it to be quicker than dense attention on this device, and dense attention elsewhere
    Auto,
    /// Attend to the positions that SparQ chooses
    Sparq,
    /// Attend to every position
    Dense,
}

/// The settings of SparQ.
#[derive(Args, Clone, Copy, Debug)]
pub struct SparqArgs {
    /// r: components of the query that scores are approximated with [default: a quarter of the model's head_dim]
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,
    /// k: positions attended to exactly, local window included [default: 128]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// l: latest positions that are always kept [default: a quarter of k]
    #[arg(long, value_name = "L")]
    pub local_window: Option<usize>,
    /// How the copy of the keys that scores are read from is stored
    #[arg(long, value_parser = sketch_parser(), default_value = "4bits")]
    pub sketch: Sketch,
    /// When the weight left out goes to the mean value (paper: where every query head has its own key/value head)
    #[arg(long, value_parser = named::<MeanValue>(&["always", "never", "paper"]), default_value = "paper")]
    pub mean_value: MeanValue,
    /// What the query heads of a group sum to agree on positions
    #[arg(long, value_parser = named::<GroupScore>(&["probabilities", "logits"]), default_value = "probabilities")]
    pub group_score: GroupScore,
    /// How the query heads of a group agree on components: by the sum of |q|, or by |the sum of q|
    #[arg(long, value_parser = named::<Components>(&["sum-abs", "abs-sum"]), default_value = "sum-abs")]
    pub components: Components,
}

/// Parser of `--sketch`.
pub fn sketch_parser() -> impl clap::builder::TypedValueParser<Value = Sketch> {
    named::<Sketch>(&["full", "8bits", "4bits"])
}

impl Default for SparqArgs {
    /// What the command line gives where nothing is said.
    fn default() -> Self {
        Self {
            rank: None,
            top_k: None,
            local_window: None,
            sketch: Sketch::Bits4,
            mean_value: MeanValue::Paper,
            group_score: GroupScore::Probabilities,
            components: Components::SumAbs,
        }
    }
}

impl SparqArgs {
    /// The settings for a model, checked.
    ///
    /// # Errors
    /// When they don't fit `head_dim`.
    pub fn config(&self, head_dim: usize) -> Result<SparqConfig> {
        let rank = self.rank.unwrap_or((head_dim / DEFAULT_RANK_SHARE).max(1));
        let config = SparqConfig::new(rank, self.top_k.unwrap_or(DEFAULT_TOP_K))
            .with_sketch(self.sketch)
            .with_mean_value(self.mean_value)
            .with_group_score(self.group_score)
            .with_components(self.components);
        let config = match self.local_window {
            Some(window) => config.with_local_window(window),
            None => config,
        };
        config.validate(head_dim)?;
        Ok(config)
    }
}

/// A method and its settings.
#[derive(Args, Clone, Copy, Debug)]
pub struct MethodArgs {
    /// How a decode step attends (a prompt is always read densely, as in the paper)
    #[arg(long, value_enum)]
    pub method: Option<MethodName>,
    /// The settings of SparQ.
    #[command(flatten)]
    pub sparq: SparqArgs,
}

impl MethodArgs {
    /// The method for a model on a device, checked; `default` where none is named.
    ///
    /// # Errors
    /// When the settings don't fit the head_dim, also for dense: a setting that is out of range is a mistake that deserves to be told.
    pub fn method(
        &self,
        default: MethodName,
        model: &Description,
        device: &Device,
    ) -> Result<Method> {
        let config = self.sparq.config(model.head_dim)?;
        Ok(match self.method.unwrap_or(default) {
            MethodName::Auto => Auto::new(config, model.heads / model.kv_heads, device).into(),
            MethodName::Sparq => config.into(),
            MethodName::Dense => Method::DENSE,
        })
    }
}
