//! `sparq inspect`: describes a model and the savings of SparQ on it. Reads headers only.

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use sparq::cost::CacheShape;
use sparq::{RowFormat, Sketch, SparqConfig, Transfers};
use sparq_output::numbers;
use sparq_output::table::Table;

use crate::args::ModelArgs;
use crate::exit::Outcome;
use crate::method::sketch_parser;
use crate::model::Description;
use crate::output::Output;

/// The numbers of positions in the budget table.
const LENGTHS: [usize; 6] = [4096, 8192, 16384, 32768, 65536, 131_072];

/// The budgets in the table: dense attention's bytes divided by these.
const PARTS: [usize; 4] = [2, 4, 8, 16];

/// The number of fractions of a budget to try, from the whole budget down.
const ATTEMPTS: usize = 64;

/// The bytes of a cache element. Budgets are counted for a 16-bit cache.
const ELEMENT_BYTES: usize = 2;

const EXAMPLES: &str = "\
Examples:
  sparq inspect
  sparq inspect DIR --sketch full
  sparq inspect --model org/name --json";

/// The arguments of `sparq inspect`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct InspectArgs {
    /// Same as --model
    #[arg(value_name = "DIR|HUB-ID", conflicts_with = "model")]
    folder: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// Key sketch of the budget table
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

/// The cost of one position of a 16-bit cache over all layers.
#[derive(Serialize)]
struct CacheCost {
    element_bytes: usize,
    bytes_per_token: usize,
    sketch_bytes_per_token: usize,
    bytes_at_context: usize,
}

/// The settings for one budget at one number of positions.
#[derive(Serialize)]
struct BudgetRow {
    seq_len: usize,
    ratio: f64,
    /// `null` if not even r = 1 and k = 1 fit.
    settings: Option<Settings>,
    dense_bytes: f64,
}

#[derive(Serialize)]
struct Settings {
    rank: usize,
    top_k: usize,
    local_window: usize,
    rows: RowFormat,
    bytes: f64,
    share: f64,
    saved_bytes: f64,
}

/// Describes a model and prints its budget table.
pub fn run(args: &InspectArgs, out: Output) -> Result<Outcome> {
    let source = args.model.source(args.folder.as_deref())?;
    let model = source.describe()?;
    let shape = model.cache_shape(ELEMENT_BYTES);
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
    let base = SparqConfig::recommended(model.head_dim, None).with_sketch(sketch);
    // Layers with a sliding window save less. If only some layers have one, the settings for the
    // others exceed the budget, and those for a smaller budget meet it.
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
        .map(|(config, bytes)| Settings {
            rank: config.rank,
            top_k: config.top_k,
            local_window: config.local_window,
            rows: config.rows,
            bytes,
            share: bytes / dense,
            saved_bytes: dense - bytes,
        });
    BudgetRow {
        seq_len,
        ratio,
        settings,
        dense_bytes: dense,
    }
}

fn print(document: &Document, out: Output) -> Result<()> {
    for (key, value) in facts(document) {
        out.line(&format!("{key:<13} {value}"))?;
    }
    out.line(&format!(
        "\nSettings for a budget: bytes of a 16-bit cache read per token, sketch {}",
        sketch_name(document.sketch)
    ))?;
    out.text(&budget_table(&document.budget).text())
}

/// Returns the facts on a model, each a name and a text.
fn facts(document: &Document) -> Vec<(&'static str, String)> {
    let Document { model, cache, .. } = document;
    let mut facts = vec![
        ("model", model.name.to_string()),
        ("architecture", model.architecture.to_owned()),
        ("parameters", numbers::count(model.parameters)),
        (
            "stored as",
            format!(
                "{}, {}",
                model.stored_types.join(" and "),
                numbers::binary_bytes(model.weight_bytes as f64)
            ),
        ),
        ("layers", model.layers.to_string()),
        (
            "heads",
            format!(
                "{} query heads over {} KV heads of dimension {}",
                model.heads, model.kv_heads, model.head_dim
            ),
        ),
        ("context", model.context.to_string()),
        ("window", window(model)),
        (
            "cache",
            format!(
                "{} per token in 16 bits, {} for the full context",
                numbers::binary_bytes(cache.bytes_per_token as f64),
                numbers::binary_bytes(cache.bytes_at_context as f64)
            ),
        ),
        (
            "sketch",
            format!(
                "{} more per token for SparQ ({})",
                numbers::binary_bytes(cache.sketch_bytes_per_token as f64),
                sketch_name(document.sketch)
            ),
        ),
    ];
    if let Some(config) = model.attention {
        facts.push((
            "attention",
            format!(
                "r = {}, k = {}, local window {}, {}, rows {}",
                config.rank,
                config.top_k,
                config.local_window,
                sketch_name(config.sketch),
                config.rows
            ),
        ));
    }
    facts
}

/// Makes the table of settings by length and budget.
fn budget_table(rows: &[BudgetRow]) -> Table {
    let mut table = Table::new([
        "length",
        "budget",
        "rank r",
        "top-k k",
        "rows",
        "dense reads",
        "SparQ reads",
        "share",
        "saved",
    ]);
    for row in rows {
        let (length, budget, dense) = (
            numbers::positions(row.seq_len),
            numbers::reciprocal(row.ratio),
            numbers::binary_bytes(row.dense_bytes),
        );
        match &row.settings {
            Some(found) => table.row([
                length,
                budget,
                found.rank.to_string(),
                found.top_k.to_string(),
                found.rows.to_string(),
                dense,
                numbers::binary_bytes(found.bytes),
                format!("{:.1}%", 100.0 * found.share),
                numbers::binary_bytes(found.saved_bytes),
            ]),
            None => table.row([length, budget, "-".into(), "-".into(), "-".into(), dense]),
        }
    }
    table
}

/// Describes the sliding window.
fn window(model: &Description) -> String {
    match model.sliding_window {
        Some(window) => format!(
            "{window} positions in {} of {} layers",
            model.sliding_layers, model.layers
        ),
        None => "none".into(),
    }
}

/// Describes a sketch.
fn sketch_name(sketch: Sketch) -> &'static str {
    match sketch {
        Sketch::Full => "a full copy of the keys",
        Sketch::Bits8 => "8 bits",
        Sketch::Bits4 => "4 bits",
    }
}
