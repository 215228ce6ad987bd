//! `--calibrate`: the cheapest setting that keeps a share of the attention on a text.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use burn::tensor::FloatDType;
use clap::Args;
use serde::Serialize;
use sparq::cost::CacheShape;
use sparq::{Method, SparqConfig, Transfers};
use sparq_models::calibration::{self, KeptMass};
use sparq_models::checkpoint::Calibration;

use crate::model::{self, LoadedModel, ModelSource};
use crate::output::Output;
use crate::progress;
use crate::table::Table;

/// Positions of the text at most, where --context says nothing else.
const CONTEXT: usize = 2048;

/// Steps that are measured, the last ones of the text.
const STEPS: usize = 32;

/// Fewer tokens have nothing to choose among.
const LEAST: usize = 64;

/// Bytes of an element of the cache that costs are counted for.
const ELEMENT_BYTES: usize = 2;

/// The arguments of a calibration.
#[derive(Args, Clone, Debug)]
pub struct CalibrateArgs {
    /// Text file on which it is measured how much attention the chosen positions keep, for a grid of r and k; the cheapest setting that keeps --keep
    /// is written down
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Share of the attention probability to keep, in the mean over layers and heads
    #[arg(long, value_parser = super::share, value_name = "SHARE", default_value = "0.95", requires = "calibrate")]
    pub keep: f64,
}

/// A text, cut to what is measured.
pub struct Text {
    tokens: Vec<u32>,
}

/// What was measured.
#[derive(Serialize)]
pub struct Measured {
    tokens: usize,
    steps: usize,
    keep: f64,
    /// Which of the grid was taken.
    chosen: usize,
    grid: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    rank: usize,
    top_k: usize,
    local_window: usize,
    kept: f64,
    worst_head: f64,
    share_of_dense: f64,
    /// For each layer and query head.
    layers: Vec<Vec<f64>>,
    #[serde(skip)]
    config: SparqConfig,
}

impl Text {
    /// Reads the text, before anything long begins.
    ///
    /// # Errors
    /// When it can't be read, or is too short.
    pub fn read(
        path: &PathBuf,
        context: Option<usize>,
        source: &ModelSource,
        model_context: usize,
    ) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "--calibrate {}: expected a file with text in UTF-8",
                path.display()
            )
        })?;
        let mut tokens = source.tokenizer()?.encode(&text, true)?;
        tokens.truncate(context.unwrap_or(CONTEXT).min(model_context));
        if tokens.len() < LEAST {
            bail!(
                "--calibrate {}: expected at least {LEAST} tokens within the context, found {}",
                path.display(),
                tokens.len()
            );
        }
        Ok(Self { tokens })
    }
}

/// Measures the grid around `base`, of which rank and k are replaced unless they are `fixed`, and chooses.
///
/// # Errors
/// When the model fails, or no setting of the grid keeps enough.
pub fn run(
    text: &Text,
    keep: f64,
    base: SparqConfig,
    fixed: [bool; 2],
    loaded: &LoadedModel,
    out: Output,
) -> Result<Measured> {
    let model = loaded.model.as_ref();
    if let Some(&token) = text
        .tokens
        .iter()
        .find(|&&token| token as usize >= model.vocab_size())
    {
        bail!(
            "--calibrate: expected tokens below {} (the model's vocabulary), found {token}",
            model.vocab_size()
        );
    }
    let length = text.tokens.len();
    let configs = grid(base, fixed, loaded.description.head_dim, length);
    let steps = STEPS.min(length / 2);
    let (before, measured) = text.tokens.split_at(length - steps);
    let method = Method::from(base);
    let mut cache = model.new_cache(1, length, FloatDType::F32, &method)?;
    let bar = progress::reading(length, out);
    model::read(model, &mut cache, before, &|done| {
        bar.set_position(done as u64)
    })?;
    let kept = calibration::kept_mass(model, &mut cache, measured, &configs, &mut || bar.inc(1))?;
    bar.finish_and_clear();

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
            "--keep: expected a setting that keeps {keep} of the attention, found {found}; ask for less"
        );
    };
    Ok(Measured {
        tokens: length,
        steps,
        keep,
        chosen,
        grid,
    })
}

/// The settings to measure.
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
        let SparqConfig {
            rank,
            top_k,
            local_window,
            ..
        } = kept.config;
        Self {
            rank,
            top_k,
            local_window,
            kept: kept.mean(),
            worst_head: kept.worst(),
            share_of_dense: share(&kept.config),
            config: kept.config,
            layers: kept.layers,
        }
    }
}

impl Measured {
    fn chosen(&self) -> &Row {
        &self.grid[self.chosen]
    }

    /// The setting to write down.
    pub fn config(&self) -> SparqConfig {
        self.chosen().config
    }

    /// What the manifest tells of the measurement.
    pub fn summary(&self) -> Calibration {
        Calibration {
            tokens: self.tokens,
            steps: self.steps,
            asked: self.keep,
            kept: self.chosen().kept,
        }
    }

    /// The tables for people.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub fn print(&self, out: Output) -> Result<()> {
        let percent = |share: f64| format!("{:.1}%", 100.0 * share);
        out.line(&format!(
            "\nAttention that the chosen positions keep, at the last {} of {} tokens (reads: of dense attention's bytes in a 16-bit cache)",
            self.steps, self.tokens
        ))?;
        let mut table = Table::new(["rank r", "top-k k", "kept", "worst head", "reads", ""]);
        for (index, row) in self.grid.iter().enumerate() {
            table.row([
                row.rank.to_string(),
                row.top_k.to_string(),
                percent(row.kept),
                percent(row.worst_head),
                percent(row.share_of_dense),
                if index == self.chosen {
                    "taken".into()
                } else {
                    String::new()
                },
            ]);
        }
        out.text(&table.render())?;
        let row = self.chosen();
        out.line(&format!(
            "\nPercent kept by r = {} and k = {}, for each layer and query head",
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
        out.text(&table.render())
    }
}
