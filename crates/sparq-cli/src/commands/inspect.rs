//! `sparq inspect`: what a model is, and what SparQ saves on it. Reads headers only.

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use sparq::cost::CacheShape;
use sparq::methods::{GroupScore, MeanValue};
use sparq::{Sketch, SparqConfig, Transfers};

use crate::args::ModelArgs;
use crate::exit::Outcome;
use crate::method::sketch_parser;
use crate::model::{Description, ModelSource};
use crate::output::Output;
use crate::table::Table;
use crate::units;

/// Lengths of the budget table.
const LENGTHS: [usize; 6] = [4096, 8192, 16384, 32768, 65536, 131_072];

/// Budgets of the table, as parts of dense attention's bytes.
const PARTS: [usize; 4] = [2, 4, 8, 16];

/// Parts of a budget that are tried, from the whole down.
const ATTEMPTS: usize = 64;

/// Bytes of an element of the 16-bit cache that budgets are counted for.
const ELEMENT_BYTES: usize = 2;

/// Arguments of `sparq inspect`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  sparq inspect\n  sparq inspect DIR --sketch full\n  sparq inspect --model org/name --json"
)]
pub struct InspectArgs {
    /// The same as --model
    #[arg(value_name = "DIR|HUB-ID", conflicts_with = "model")]
    folder: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// The sketch that the budget table counts with
    #[arg(long, value_parser = sketch_parser(), default_value = "4bits")]
    sketch: Sketch,
}

#[derive(Serialize)]
struct Document {
    model: Description,
    cache: CacheCost,
    sketch: Sketch,
    budget: Vec<BudgetRow>,
}

/// What a position of a 16-bit cache costs in all layers together.
#[derive(Serialize)]
struct CacheCost {
    element_bytes: usize,
    bytes_per_token: usize,
    sketch_bytes_per_token: usize,
    bytes_at_context: usize,
}

/// The settings that fit one budget at one length.
#[derive(Serialize)]
struct BudgetRow {
    seq_len: usize,
    ratio: f64,
    /// `null` where not even r = 1 and k = 1 fit.
    settings: Option<Settings>,
    dense_bytes: f64,
}

#[derive(Serialize)]
struct Settings {
    rank: usize,
    top_k: usize,
    local_window: usize,
    bytes: f64,
    share: f64,
    saved_bytes: f64,
}

/// Describes a model and prints its budget table.
///
/// # Errors
/// When the checkpoint can't be read.
pub fn run(args: &InspectArgs, out: Output) -> Result<Outcome> {
    let source = ModelSource::find(args.folder.as_deref().or(args.model.model.as_deref()))?;
    let model = source.describe()?;
    let shape = CacheShape {
        element_bytes: ELEMENT_BYTES,
        ..model.cache_shape(ELEMENT_BYTES)
    };
    let document = Document {
        cache: cache_cost(&model, &shape, args.sketch),
        sketch: args.sketch,
        budget: LENGTHS
            .iter()
            .flat_map(|&length| PARTS.map(|part| budget(&model, length, part, args.sketch)))
            .collect(),
        model,
    };
    print(&document, out)?;
    out.document(&document)?;
    Ok(Outcome::Done)
}

fn cache_cost(model: &Description, shape: &CacheShape, sketch: Sketch) -> CacheCost {
    let keys = shape.kv_heads * shape.head_dim;
    let bits = sketch.bits().unwrap_or(8 * shape.element_bytes);
    let bytes_per_token = 2 * keys * shape.element_bytes;
    CacheCost {
        element_bytes: shape.element_bytes,
        bytes_per_token,
        sketch_bytes_per_token: keys * bits / 8,
        bytes_at_context: bytes_per_token.saturating_mul(model.context),
    }
}

fn budget(model: &Description, seq_len: usize, part: usize, sketch: Sketch) -> BudgetRow {
    let ratio = 1.0 / part as f64;
    let dense = model.step_bytes(ELEMENT_BYTES, seq_len, Transfers::dense);
    let base = SparqConfig::new(1, 1)
        .with_sketch(sketch)
        .with_mean_value(MeanValue::Paper)
        .with_group_score(GroupScore::Probabilities);
    // Where only some layers slide a window, the settings of the others save less there: the budget is then met by a smaller one.
    let attempts = (1..=ATTEMPTS).rev();
    let settings = attempts
        .filter_map(|attempt| {
            let ratio = ratio * attempt as f64 / ATTEMPTS as f64;
            let config = base.for_compression(model.head_dim, model.attended(seq_len), ratio);
            let config = config.ok()?;
            let sparq = |shape: &_, len| Transfers::sparq(shape, len, &config);
            Some((config, model.step_bytes(ELEMENT_BYTES, seq_len, sparq)))
        })
        .find(|(_, bytes)| *bytes <= ratio * dense)
        .map(|(config, bytes)| {
            let SparqConfig {
                rank,
                top_k,
                local_window,
                ..
            } = config;
            Settings {
                rank,
                top_k,
                local_window,
                bytes,
                share: bytes / dense,
                saved_bytes: dense - bytes,
            }
        });
    BudgetRow {
        seq_len,
        ratio,
        settings,
        dense_bytes: dense,
    }
}

fn print(document: &Document, out: Output) -> Result<()> {
    let Document { model, cache, .. } = document;
    let lines = [
        ("model", model.name.clone()),
        ("architecture", model.architecture.to_owned()),
        ("parameters", units::count(model.parameters)),
        (
            "stored as",
            format!(
                "{}, {}",
                model.stored_types.join(" and "),
                units::bytes(model.weight_bytes as f64)
            ),
        ),
        ("layers", model.layers.to_string()),
        (
            "heads",
            format!(
                "{} query heads over {} key/value heads of {} elements",
                model.heads, model.kv_heads, model.head_dim
            ),
        ),
        ("context", model.context.to_string()),
        ("window", window(model)),
        (
            "cache",
            format!(
                "{} per token in 16 bits, {} at the whole context",
                units::bytes(cache.bytes_per_token as f64),
                units::bytes(cache.bytes_at_context as f64)
            ),
        ),
        (
            "sketch",
            format!(
                "{} per token more for SparQ ({})",
                units::bytes(cache.sketch_bytes_per_token as f64),
                sketch_name(document.sketch)
            ),
        ),
    ];
    let attention = model.attention.map(|config| {
        let sketch = sketch_name(config.sketch);
        format!(
            "r = {}, k = {}, local window {}, {sketch}",
            config.rank, config.top_k, config.local_window
        )
    });
    let attention = attention.map(|settings| ("attention", settings));
    for (key, value) in lines.into_iter().chain(attention) {
        out.line(&format!("{key:<13} {value}"))?;
    }
    out.line(&format!(
        "\nSettings for a budget: bytes of a 16-bit cache read per token, sketch {}",
        sketch_name(document.sketch)
    ))?;
    let mut table = Table::new([
        "length",
        "budget",
        "rank r",
        "top-k k",
        "dense reads",
        "SparQ reads",
        "share",
        "saved",
    ]);
    for row in &document.budget {
        let (length, budget, dense) = (
            units::positions(row.seq_len),
            units::share(row.ratio),
            units::bytes(row.dense_bytes),
        );
        match &row.settings {
            Some(found) => table.row([
                length,
                budget,
                found.rank.to_string(),
                found.top_k.to_string(),
                dense,
                units::bytes(found.bytes),
                format!("{:.1}%", 100.0 * found.share),
                units::bytes(found.saved_bytes),
            ]),
            None => table.row([length, budget, "-".into(), "-".into(), dense]),
        }
    }
    out.text(&table.render())
}

/// The sliding window in words.
fn window(model: &Description) -> String {
    match model.sliding_window {
        Some(window) => format!(
            "{window} positions in {} of {} layers",
            model.sliding_layers, model.layers
        ),
        None => "none".into(),
    }
}

/// A sketch in words.
fn sketch_name(sketch: Sketch) -> &'static str {
    match sketch {
        Sketch::Full => "a full copy of the keys",
        Sketch::Bits8 => "8 bits",
        Sketch::Bits4 => "4 bits",
    }
}
