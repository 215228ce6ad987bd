//! `--calibrate`: finds the cheapest settings that keep a share of the attention on a text.

use std::path::PathBuf;

use anyhow::{Result, bail};
use burn::tensor::FloatDType;
use clap::Args;
use serde::Serialize;
use sparq::cost::CacheShape;
use sparq::methods::Anchors;
use sparq::{Method, SparqConfig, Transfers};
use sparq_eval::steps;
use sparq_models::calibration::{self, KeptMass};
use sparq_models::checkpoint::Calibration;
use sparq_models::{LayerSharing, SharingPlan};
use sparq_output::table::Table;

use crate::args::share;
use crate::model::{Description, LoadedModel, ModelSource};
use crate::output::Output;
use crate::progress;

/// The default of --context.
const CONTEXT: usize = 2048;

/// The number of decode steps to measure, the last ones of the text.
const STEPS: usize = 32;

/// k of the measurement of shared layers, at most an eighth of the text.
const SHARED_TOP_K: usize = 128;

/// The passages that are read again for the calibration of shared positions, and the tokens of one.
const PASSAGES: usize = 3;
const PASSAGE: usize = 24;

/// The least number of tokens. Fewer leave no choice of k.
const MIN_TOKENS: usize = 64;

/// The bytes of a cache element for the costs.
const ELEMENT_BYTES: usize = 2;

/// The options of a calibration.
#[derive(Args, Clone, Debug)]
pub struct CalibrateArgs {
    /// Measure on this text file how much attention the selected positions keep, for a grid of r
    /// and k, and store the cheapest settings that keep --keep
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Share of the attention probability to keep, averaged over layers and heads
    #[arg(long, value_parser = share, value_name = "SHARE", default_value = "0.95", requires = "calibrate")]
    pub keep: f64,
}

/// The measurements of a calibration.
#[derive(Serialize)]
pub struct Measured {
    tokens: usize,
    steps: usize,
    keep: f64,
    /// The index of the chosen settings in the grid.
    chosen: usize,
    grid: Vec<Row>,
    /// The attention kept by each number of anchors.
    anchors: Vec<AnchorRow>,
    #[serde(skip)]
    sharing: LayerSharing,
}

/// The best anchors of one number.
#[derive(Serialize)]
struct AnchorRow {
    anchors: usize,
    /// The share kept by the positions of the anchors, as the geometric mean over layers and heads.
    kept: f64,
    /// For each layer the layer whose positions it takes.
    anchor_of: Vec<usize>,
}

#[derive(Serialize)]
struct Row {
    rank: usize,
    top_k: usize,
    local_window: usize,
    kept: f64,
    worst_head: f64,
    share_of_dense: f64,
    /// The share kept by each layer and query head.
    layers: Vec<Vec<f64>>,
    #[serde(skip)]
    config: SparqConfig,
}

impl CalibrateArgs {
    /// Reads the tokens of the text, if there is one.
    ///
    /// # Errors
    /// If the text cannot be read or is too short.
    pub fn text(
        &self,
        context: Option<usize>,
        source: &ModelSource,
        model: &Description,
    ) -> Result<Option<Vec<u32>>> {
        let Some(path) = &self.calibrate else {
            return Ok(None);
        };
        let most = model.context.saturating_sub(PASSAGES * PASSAGE);
        let limit = context.unwrap_or(CONTEXT).min(most);
        let tokens = source.text_tokens("--calibrate", path, limit)?;
        if tokens.len() < MIN_TOKENS {
            bail!(
                "--calibrate {}: expected at least {MIN_TOKENS} tokens within the context, found {}",
                path.display(),
                tokens.len()
            );
        }
        Ok(Some(tokens))
    }
}

/// Measures a grid of settings and chooses the cheapest that keep `keep`. The grid replaces rank
/// and k of `base` unless they are `fixed`.
///
/// # Errors
/// If the model fails, or no settings of the grid keep enough.
pub fn run(
    text: &[u32],
    keep: f64,
    base: SparqConfig,
    fixed: [bool; 2],
    loaded: &LoadedModel,
    out: Output,
) -> Result<Measured> {
    let model = loaded.model.as_ref();
    let vocab = model.vocab_size();
    if let Some(token) = text.iter().find(|&&token| token as usize >= vocab) {
        bail!("--calibrate: expected tokens below {vocab} (the model's vocabulary), found {token}");
    }
    let length = text.len();
    let configs = grid(base, fixed, loaded.description.head_dim, length);
    let decoded = STEPS.min(length / 2);
    let (before, measured) = text.split_at(length - decoded);
    // The measurements are those of every layer by itself.
    let method = Method::from(base.with_anchors(Anchors::All));
    let mut cache = model.new_cache(1, length, FloatDType::F32, &method)?;
    let bar = progress::reading(length, out);
    steps::read(model, &mut cache, before, &|done| {
        bar.set_position(done as u64)
    })?;
    let kept = calibration::kept_mass(model, &mut cache, measured, &configs, &mut || bar.inc(1))?;
    cache.truncate(before.len());
    let top_k = SHARED_TOP_K.min(length / 8);
    let measured = [measured, &repeated(before)].concat();
    let sharing = calibration::layer_sharing(model, &mut cache, &measured, top_k, &mut || ())?;
    bar.finish_and_clear();
    sharing.plan(base.anchors.of(sharing.layers()), 0)?;

    let bytes = |transfers: &dyn Fn(&CacheShape, usize) -> Transfers| {
        loaded
            .description
            .step_bytes(ELEMENT_BYTES, length, transfers)
    };
    let dense = bytes(&Transfers::dense);
    let share = |config: &SparqConfig| {
        bytes(&|shape: &CacheShape, len| Transfers::sparq(shape, len, config)) / dense
    };
    let grid: Vec<Row> = kept.into_iter().map(|kept| Row::new(kept, share)).collect();
    let enough = grid.iter().enumerate().filter(|(_, row)| row.kept >= keep);
    let cheapest = enough.min_by(|(_, a), (_, b)| a.share_of_dense.total_cmp(&b.share_of_dense));
    let Some((chosen, _)) = cheapest else {
        let most = grid.iter().max_by(|a, b| a.kept.total_cmp(&b.kept));
        let found = most.map_or("none".to_owned(), |row| {
            format!(
                "at most {:.4} with r = {} and k = {}",
                row.kept, row.rank, row.top_k
            )
        });
        bail!(
            "--keep: expected settings that keep {keep} of the attention, found {found}; use a lower share"
        );
    };
    Ok(Measured {
        tokens: length,
        steps: decoded,
        keep,
        chosen,
        grid,
        anchors: anchor_rows(&sharing),
        sharing,
    })
}

/// Returns passages from the middle of a text, to be read again at its end.
///
/// A language model predicts them by attention to their first occurrence. Running text alone rarely
/// needs the heads that find it, and a plan without them loses retrieval.
fn repeated(text: &[u32]) -> Vec<u32> {
    let passage = |part: usize| {
        let first = text.len() * part / (PASSAGES + 1);
        &text[first..text.len().min(first + PASSAGE)]
    };
    (1..=PASSAGES).flat_map(passage).copied().collect()
}

/// Returns the best anchors of each number for which there is a plan.
fn anchor_rows(sharing: &LayerSharing) -> Vec<AnchorRow> {
    let row = |plan: SharingPlan| AnchorRow {
        anchors: plan.anchors(),
        kept: sharing.kept(&plan),
        anchor_of: plan.anchor_of,
    };
    let plans = sharing.plans(0).into_iter().flatten();
    plans.map(row).collect()
}

/// Returns the settings to measure.
fn grid(
    base: SparqConfig,
    [fixed_rank, fixed_top_k]: [bool; 2],
    head_dim: usize,
    length: usize,
) -> Vec<SparqConfig> {
    let mut ranks: Vec<usize> = match fixed_rank {
        true => vec![base.rank],
        false => [8, 4, 2, 1].map(|part| (head_dim / part).max(1)).into(),
    };
    ranks.dedup();
    let top_ks: Vec<usize> = match fixed_top_k {
        true => vec![base.top_k],
        false => (4..)
            .map(|power| 1 << power)
            .take_while(|&top_k| top_k < length)
            .collect(),
    };
    let pairs = ranks
        .into_iter()
        .flat_map(|rank| top_ks.iter().map(move |&top_k| (rank, top_k)));
    pairs
        .map(|(rank, top_k)| SparqConfig {
            rank,
            top_k,
            local_window: match fixed_top_k {
                true => base.local_window,
                false => SparqConfig::new(rank, top_k).local_window,
            },
            ..base
        })
        .collect()
}

impl Row {
    fn new(kept: KeptMass, share: impl Fn(&SparqConfig) -> f64) -> Self {
        let config = kept.config;
        Self {
            rank: config.rank,
            top_k: config.top_k,
            local_window: config.local_window,
            kept: kept.mean(),
            worst_head: kept.worst(),
            share_of_dense: share(&config),
            config,
            layers: kept.layers,
        }
    }
}

impl Measured {
    fn chosen(&self) -> &Row {
        &self.grid[self.chosen]
    }

    /// Returns the chosen settings.
    pub fn config(&self) -> SparqConfig {
        self.chosen().config
    }

    /// Returns the measurement of shared layers.
    pub fn sharing(&self) -> &LayerSharing {
        &self.sharing
    }

    /// Returns the summary for the manifest.
    pub fn summary(&self) -> Calibration {
        Calibration {
            tokens: self.tokens,
            steps: self.steps,
            asked: self.keep,
            kept: self.chosen().kept,
        }
    }

    /// Prints the tables.
    pub fn print(&self, out: Output) -> Result<()> {
        let percent = |share: f64| format!("{:.1}%", 100.0 * share);
        out.line(&format!(
            "\nAttention kept by the selected positions, at the last {} of {} tokens \
             (reads: share of dense attention's bytes, 16-bit cache)",
            self.steps, self.tokens
        ))?;
        let mut table = Table::new(["rank r", "top-k k", "kept", "worst head", "reads", ""]);
        let marks = ["", "chosen"];
        for (index, row) in self.grid.iter().enumerate() {
            table.row([
                row.rank.to_string(),
                row.top_k.to_string(),
                percent(row.kept),
                percent(row.worst_head),
                percent(row.share_of_dense),
                marks[usize::from(index == self.chosen)].to_owned(),
            ]);
        }
        out.text(&table.text())?;
        let row = self.chosen();
        out.line(&format!(
            "\nPercent kept by r = {} and k = {}, by layer and query head",
            row.rank, row.top_k
        ))?;
        let heads = row.layers.iter().map(Vec::len).max().unwrap_or(0);
        let mut table = Table::new(
            std::iter::once("layer".to_owned()).chain((0..heads).map(|head| head.to_string())),
        );
        for (layer, heads) in row.layers.iter().enumerate() {
            let cells = heads.iter().map(|kept| format!("{:.0}", 100.0 * kept));
            table.row(std::iter::once(layer.to_string()).chain(cells));
        }
        out.text(&table.text())?;
        self.print_anchors(out)
    }

    fn print_anchors(&self, out: Output) -> Result<()> {
        out.line(&format!(
            "\nAttention kept if some layers select {} positions and the others reuse them",
            self.sharing.top_k
        ))?;
        let mut table = Table::new(["anchors", "kept", "layers that select"]);
        for row in &self.anchors {
            let layers = row.anchor_of.iter().enumerate();
            let selecting = layers.filter(|&(layer, &anchor)| layer == anchor);
            let selecting: Vec<String> = selecting.map(|(layer, _)| layer.to_string()).collect();
            table.row([
                row.anchors.to_string(),
                format!("{:.1}%", 100.0 * row.kept),
                selecting.join(" "),
            ]);
        }
        out.text(&table.text())
    }
}
