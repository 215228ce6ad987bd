//! The arguments that choose how a decode step attends.

use anyhow::Result;
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use sparq::methods::{Auto, Components, GroupScore, MeanValue};
use sparq::{Method, Sketch, SparqConfig};

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
///
/// What is left out is what the model's `sparq.json` says, or else the default.
#[derive(Args, Clone, Copy, Debug, Default)]
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
    /// How the copy of the keys that scores are read from is stored [default: 4bits]
    #[arg(long, value_parser = sketch_parser())]
    pub sketch: Option<Sketch>,
    /// When the weight left out goes to the mean value; paper: where every query head has its own key/value head [default: paper]
    #[arg(long, value_parser = named::<MeanValue>(&["always", "never", "paper"]))]
    pub mean_value: Option<MeanValue>,
    /// What the query heads of a group sum to agree on positions [default: probabilities]
    #[arg(long, value_parser = named::<GroupScore>(&["probabilities", "logits"]))]
    pub group_score: Option<GroupScore>,
    /// How the query heads of a group agree on components: by the sum of |q|, or by |the sum of q| [default: sum-abs]
    #[arg(long, value_parser = named::<Components>(&["sum-abs", "abs-sum"]))]
    pub components: Option<Components>,
}

/// Parser of `--sketch`.
pub fn sketch_parser() -> impl clap::builder::TypedValueParser<Value = Sketch> {
    named::<Sketch>(&["full", "8bits", "4bits"])
}

impl SparqArgs {
    /// Whether anything was said.
    pub fn is_given(&self) -> bool {
        let Self {
            rank,
            top_k,
            local_window,
            sketch,
            mean_value,
            group_score,
            components,
        } = *self;
        rank.is_some()
            || top_k.is_some()
            || local_window.is_some()
            || sketch.is_some()
            || mean_value.is_some()
            || group_score.is_some()
            || components.is_some()
    }

    /// The settings for a model, checked.
    ///
    /// # Errors
    /// When they don't fit the model's head_dim.
    pub fn config(&self, model: &Description) -> Result<SparqConfig> {
        let base = model.attention.unwrap_or_else(|| {
            let rank = (model.head_dim / DEFAULT_RANK_SHARE).max(1);
            SparqConfig::new(rank, DEFAULT_TOP_K).with_sketch(Sketch::Bits4)
        });
        let config = self.over(base);
        config.validate(model.head_dim)?;
        Ok(config)
    }

    /// What was said, and `base` where nothing was.
    pub fn over(&self, base: SparqConfig) -> SparqConfig {
        SparqConfig {
            rank: self.rank.unwrap_or(base.rank),
            top_k: self.top_k.unwrap_or(base.top_k),
            local_window: match (self.local_window, self.top_k) {
                (Some(window), _) => window,
                (None, Some(top_k)) => SparqConfig::new(1, top_k).local_window,
                (None, None) => base.local_window,
            },
            sketch: self.sketch.unwrap_or(base.sketch),
            mean_value: self.mean_value.unwrap_or(base.mean_value),
            group_score: self.group_score.unwrap_or(base.group_score),
            components: self.components.unwrap_or(base.components),
        }
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
        let config = self.sparq.config(model)?;
        Ok(match self.method.unwrap_or(default) {
            MethodName::Auto => Auto::new(config, model.heads / model.kv_heads, device).into(),
            MethodName::Sparq => config.into(),
            MethodName::Dense => Method::DENSE,
        })
    }
}
