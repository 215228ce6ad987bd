//! The options that choose the method of decode steps.

use anyhow::{Result, bail};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use sparq::methods::{Anchors, Auto, Components, Dense, GroupScore, Magnitude, MeanValue, Setting};
use sparq::{Method, RowFormat, Sketch, SparqConfig};
use sparq_models::text::SpeculativeConfig;

use crate::args::{named, whole};
use crate::model::Description;

/// The names of methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MethodName {
    /// SparQ if the cost model expects it to be faster than dense attention on this device, else
    /// dense attention
    Auto,
    /// Attend to the positions that SparQ selects
    Sparq,
    /// Attend to every position
    Dense,
    /// The tokens of dense attention in less time: SparQ drafts some, and one dense pass verifies
    /// all of them
    Lossless,
}

/// The settings of SparQ. Settings not given come from the model's `sparq.json`, or are the
/// defaults.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct SparqArgs {
    /// r: number of query components that approximate the scores [default: head_dim / 4]
    #[arg(long, value_name = "R", value_parser = whole::<usize>)]
    pub rank: Option<usize>,
    /// k: number of positions in exact attention, local window included [default: 256, or 128 with
    /// --kv-rows float]
    #[arg(long, value_name = "K", value_parser = whole::<usize>)]
    pub top_k: Option<usize>,
    /// l: number of latest positions that are always among the k [default: k / 4]
    #[arg(long, value_name = "L", value_parser = whole::<usize>)]
    pub local_window: Option<usize>,
    /// Storage of the key sketch, the copy of the keys for approximate scores [default: 4bits]
    #[arg(long, value_parser = sketch_parser())]
    pub sketch: Option<Sketch>,
    /// When the mean value stands for the positions not selected. `paper`: if every query head has
    /// its own KV head [default: paper]
    #[arg(long, value_parser = named::<MeanValue>(&["always", "never", "paper"]))]
    pub mean_value: Option<MeanValue>,
    /// Scores that the query heads of a group sum to select positions [default: probabilities]
    #[arg(long, value_parser = named::<GroupScore>(&["probabilities", "logits"]))]
    pub group_score: Option<GroupScore>,
    /// How the query heads of a group select components: by the sum of |q|, or by |the sum of q|
    /// [default: sum-abs]
    #[arg(long, value_parser = named::<Components>(&["sum-abs", "abs-sum"]))]
    pub components: Option<Components>,
    /// Magnitude of one query component: |q|, or |q| times the range of the component over the
    /// keys, which a sketch in codes knows [default: contribution]
    #[arg(long, value_parser = named::<Magnitude>(&["query", "contribution"]))]
    pub magnitude: Option<Magnitude>,
    /// Storage of keys and values in the cache: floats, or codes of 8 bits with a scale for each
    /// position and KV head [default: int8 for SparQ, float for dense attention and for lossless]
    #[arg(long, value_parser = rows_parser())]
    pub kv_rows: Option<RowFormat>,
    /// Number of layers that select positions for all layers, or `all`. Fewer need a model
    /// converted with --calibrate [default: all]
    #[arg(long, value_parser = anchors, value_name = "N")]
    pub anchors: Option<Anchors>,
}

/// Parses the value of `--anchors`.
fn anchors(text: &str) -> std::result::Result<Anchors, String> {
    let mut anchors = Anchors::All;
    anchors
        .set(text)
        .map_err(|expected| format!("expected {expected}, found {text:?}"))?;
    Ok(anchors)
}

/// Returns the parser of `--sketch`.
pub fn sketch_parser() -> impl clap::builder::TypedValueParser<Value = Sketch> {
    named::<Sketch>(&["full", "8bits", "4bits"])
}

/// Returns the parser of `--kv-rows`.
pub fn rows_parser() -> impl clap::builder::TypedValueParser<Value = RowFormat> {
    named::<RowFormat>(&["float", "int8"])
}

impl SparqArgs {
    /// Returns whether any setting was given.
    pub fn is_given(&self) -> bool {
        self.rank.is_some()
            || self.top_k.is_some()
            || self.local_window.is_some()
            || self.sketch.is_some()
            || self.mean_value.is_some()
            || self.group_score.is_some()
            || self.components.is_some()
            || self.magnitude.is_some()
            || self.kv_rows.is_some()
            || self.anchors.is_some()
    }

    /// Returns the settings for a model.
    ///
    /// # Errors
    /// If they do not fit the model's head_dim.
    pub fn config(&self, model: &Description) -> Result<SparqConfig> {
        let recommended = || SparqConfig::recommended(model.head_dim, self.kv_rows);
        let config = self.over(model.attention.unwrap_or_else(recommended));
        config.validate(model.head_dim)?;
        Ok(config)
    }

    /// Replaces the settings of `base` by those given.
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
            magnitude: self.magnitude.unwrap_or(base.magnitude),
            rows: self.kv_rows.unwrap_or(base.rows),
            anchors: self.anchors.unwrap_or(base.anchors),
        }
    }
}

/// A method and its settings.
#[derive(Args, Clone, Copy, Debug)]
pub struct MethodArgs {
    /// Method of decode steps. Prompts are always read with dense attention, as in the paper
    #[arg(long, value_enum)]
    pub method: Option<MethodName>,
    /// The settings of SparQ.
    #[command(flatten)]
    pub sparq: SparqArgs,
}

impl MethodArgs {
    /// Returns the method for a model on a device. `default` is for no `--method`.
    ///
    /// # Errors
    /// If the settings do not fit the model's head_dim. Dense attention refuses such settings too.
    pub fn method(
        &self,
        default: MethodName,
        model: &Description,
        device: &Device,
    ) -> Result<Method> {
        let config = self.sparq.config(model)?;
        model.check_anchors(&config.into())?;
        Ok(match self.method.unwrap_or(default) {
            MethodName::Auto => Auto::new(config, model.heads / model.kv_heads, device).into(),
            MethodName::Sparq => config.into(),
            // The settings of a model are those of SparQ.
            MethodName::Dense | MethodName::Lossless => Dense {
                rows: self.sparq.kv_rows.unwrap_or_default(),
            }
            .into(),
        })
    }

    /// Returns the settings of drafts and their verification, `None` with another method.
    ///
    /// # Errors
    /// If the settings do not fit the model's head_dim, or are given with another method.
    pub fn speculative(
        &self,
        draft: &DraftArgs,
        model: &Description,
        device: &Device,
    ) -> Result<Option<SpeculativeConfig>> {
        if self.method != Some(MethodName::Lossless) {
            if draft.is_given() {
                bail!(
                    "--draft-rank, --draft-top-k, --draft-tokens, --draft-model: expected \
                     --method lossless"
                );
            }
            return Ok(None);
        }
        // Drafts read the cache of the dense passes.
        let rows = self.sparq.kv_rows.unwrap_or_default();
        let sparq = SparqArgs {
            rank: draft.draft_rank.or(self.sparq.rank),
            top_k: draft.draft_top_k.or(self.sparq.top_k),
            kv_rows: Some(rows),
            ..self.sparq
        };
        let settings = sparq.config(model)?;
        model.check_anchors(&settings.into())?;
        let draft_method = Auto::new(settings, model.heads / model.kv_heads, device);
        let config = SpeculativeConfig::new(draft_method).with_tokens(draft.draft_tokens);
        config.validate(model.head_dim)?;
        Ok(Some(config))
    }
}

/// The settings of drafts.
#[derive(Args, Clone, Debug, Default)]
pub struct DraftArgs {
    /// With --method lossless: r of draft steps [default: that of --rank]
    #[arg(long, value_name = "R", value_parser = whole::<usize>)]
    draft_rank: Option<usize>,
    /// With --method lossless: k of draft steps [default: that of --top-k]
    #[arg(long, value_name = "K", value_parser = whole::<usize>)]
    draft_top_k: Option<usize>,
    /// With --method lossless: number of tokens that a draft has, 1 to 15 [default: as many as pay,
    /// by the cost model and the share of tokens accepted so far]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    draft_tokens: Option<usize>,
    /// With --method lossless: a model of the same layers whose weights draft, such as the same
    /// model in Q4_0. The text is still that of --model
    #[arg(long, value_name = "DIR|FILE.gguf|HUB-ID")]
    pub draft_model: Option<String>,
}

impl DraftArgs {
    fn is_given(&self) -> bool {
        let settings = [self.draft_rank, self.draft_top_k, self.draft_tokens];
        self.draft_model.is_some() || settings.iter().any(Option::is_some)
    }
}
