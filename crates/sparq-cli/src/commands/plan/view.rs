//! The text output of `sparq plan`.

use anyhow::Result;
use sparq::methods::{Anchors, Components, GroupScore};
use sparq::{Method, RowFormat, Sketch};
use sparq_output::numbers::{self, digits};
use sparq_output::table::Table;
use sparq_plan::Setup;

use super::document::{Document, Prediction, Row};
use crate::output::Output;

/// Prints the plan.
pub fn print(document: &Document, out: Output) -> Result<()> {
    head(document, out)?;
    let split = document.setup.gpus > 1;
    out.line(&format!(
        "\nA step of {} at S = {}",
        counted(document.batch, "sequence"),
        document.context
    ))?;
    let mut table = Table::new([
        "method",
        if split {
            "cache each/GPU"
        } else {
            "cache each"
        },
        "moved",
        "share",
        "attention ms",
        "step ms",
        "tokens/s",
        "x dense",
        "from S",
    ]);
    let dense = document.methods.first().map(|row| row.at_batch);
    for row in rows(document) {
        table.row(step_cells(row, dense));
    }
    out.text(&table.text())?;
    if rows(document).any(|row| !row.fits) {
        out.line("* does not fit into memory")?;
    }
    let known = |row: &Row| matches!(row.settings, Method::Dense(_) | Method::Sparq(_));
    if rows(document).any(|row| !known(row)) {
        out.line(
            "Methods other than dense and SparQ have no kernels here. Their times are the least that \
             their bytes take; memory beside K and V is not counted.",
        )?;
    }

    let drafts: Vec<&Row> = rows(document)
        .filter(|row| row.lossless.is_some())
        .collect();
    if let Some(first) = drafts.first().and_then(|row| row.lossless) {
        out.line(&format!(
            "\nThe tokens of dense attention, drafted and verified, with {:.0}% of drafts accepted",
            100.0 * first.acceptance
        ))?;
        let mut table = Table::new(["drafts by", "draft", "tokens/draft", "tokens/s", "x dense"]);
        for row in drafts {
            table.row(lossless_cells(row, dense));
        }
        out.text(&table.text())?;
    }

    out.line(&format!(
        "\nThe largest batch that fits into {} ({:.0}% of memory) beside the weights",
        numbers::binary_bytes(document.setup.memory_bytes()),
        100.0 * document.setup.memory_share
    ))?;
    let priced = document.price_per_hour.is_some();
    let mut headings = vec![
        "method",
        "B",
        "attention ms",
        "step ms",
        "tokens/s",
        "x dense",
    ];
    if priced {
        headings.push("per 10^6 tokens");
    }
    let mut table = Table::new(headings);
    let dense = document.methods.first().and_then(|row| row.largest);
    for row in rows(document) {
        table.row(batch_cells(row, dense, priced));
    }
    out.text(&table.text())?;
    if let Some(quality) = &document.quality {
        out.line(&format!("\n{quality}"))?;
    }
    Ok(())
}

fn rows(document: &Document) -> impl Iterator<Item = &Row> {
    let cheapest = document
        .quality
        .as_ref()
        .and_then(|found| found.row.as_ref());
    document.methods.iter().chain(cheapest)
}

fn head(document: &Document, out: Output) -> Result<()> {
    let Document { setup, .. } = document;
    let Setup { model, machine, .. } = setup;
    let gpus = match setup.gpus {
        1 => String::new(),
        n => format!("{n} x "),
    };
    let mut lines = vec![
        ("model", document.model.to_string()),
        (
            "weights",
            format!(
                "{} in {}; a step reads {}",
                numbers::binary_bytes((model.parameters * setup.element_bytes) as f64),
                document.dtype,
                numbers::binary_bytes(document.read_bytes)
            ),
        ),
        (
            "cache",
            format!(
                "{} layers with {} KV heads of dimension {} for {} query heads",
                model.layers, model.kv_heads, model.head_dim, model.heads
            ),
        ),
        (
            "machine",
            format!(
                "{gpus}{}, {:.0} GB at {:.0} GB/s; reads weights at {:.0} GB/s",
                machine.name,
                machine.memory_gb,
                machine.gb_per_s,
                machine.weights_rate(document.batch)
            ),
        ),
    ];
    if let Some(measured) = &document.measured {
        lines.push((
            "measured",
            format!(
                "{} of attention; predictions are off by {:.0}% on average and {:.0}% at most",
                counted(measured.attention_steps, "step"),
                100.0 * measured.mean_error,
                100.0 * measured.worst_error
            ),
        ));
    }
    if setup.gpus > 1 {
        lines.push((
            "split",
            match setup.all_reduce_us > 0.0 {
                true => format!("two all-reduces per layer, {} us each", setup.all_reduce_us),
                false => "all-reduces between the GPUs are not counted (--all-reduce-us)".into(),
            },
        ));
    }
    for (key, value) in lines {
        out.line(&format!("{key:<10} {value}"))?;
    }
    Ok(())
}

fn step_cells(row: &Row, dense: Option<Prediction>) -> Vec<String> {
    let Prediction {
        parts,
        step_us,
        tokens_per_s,
        ..
    } = row.at_batch;
    vec![
        format!("{}{}", row.label, if row.fits { "" } else { " *" }),
        numbers::binary_bytes(row.cache_bytes),
        numbers::binary_bytes(row.step_bytes),
        numbers::reciprocal(row.share_of_dense),
        ms(parts.attention_us),
        ms(step_us),
        digits(tokens_per_s),
        gain(tokens_per_s, dense),
        match (&row.settings, row.break_even) {
            (Method::Sparq(_), Some(at)) => at.to_string(),
            (Method::Sparq(_), None) => "never".into(),
            _ => "-".into(),
        },
    ]
}

fn lossless_cells(row: &Row, dense: Option<Prediction>) -> Vec<String> {
    let mut cells = vec![row.label.clone()];
    if let Some(lossless) = row.lossless {
        cells.extend([
            match lossless.drafted {
                0 => "none pays".into(),
                drafted => counted(drafted, "token"),
            },
            digits(lossless.tokens),
            digits(lossless.tokens_per_s),
            gain(lossless.tokens_per_s, dense),
        ]);
    }
    cells
}

fn batch_cells(row: &Row, dense: Option<Prediction>, priced: bool) -> Vec<String> {
    let mut cells = vec![row.label.clone()];
    match row.largest {
        None => cells.push("0".into()),
        Some(largest) => {
            cells.extend([
                largest.batch.to_string(),
                ms(largest.parts.attention_us),
                ms(largest.step_us),
                digits(largest.tokens_per_s),
                gain(largest.tokens_per_s, dense),
            ]);
            if let Some(price) = largest.price_per_million.filter(|_| priced) {
                cells.push(money(price));
            }
        }
    }
    cells
}

/// Formats a method with its settings: `SparQ 4bits r=32 k=128`.
pub fn label(method: &Method, grouped: bool) -> String {
    match method {
        Method::Sparq(config) => {
            let sketch = match config.sketch {
                Sketch::Full => "full",
                Sketch::Bits8 => "8bits",
                Sketch::Bits4 => "4bits",
            };
            let as_one =
                config.group_score == GroupScore::Logits && config.components == Components::AbsSum;
            let group = if grouped && as_one {
                " as one query"
            } else {
                ""
            };
            let rows = match config.rows {
                RowFormat::Float => String::new(),
                rows => format!(" rows={rows}"),
            };
            let anchors = match config.anchors {
                Anchors::All => String::new(),
                Anchors::Number(number) => format!(" anchors={number}"),
            };
            format!(
                "SparQ {sketch} r={} k={}{group}{rows}{anchors}",
                config.rank, config.top_k
            )
        }
        other => other.to_string(),
    }
}

fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

fn ms(us: f64) -> String {
    digits(us / 1e3)
}

fn gain(tokens_per_s: f64, dense: Option<Prediction>) -> String {
    dense.map_or("-".into(), |dense| {
        format!("{:.2}", tokens_per_s / dense.tokens_per_s)
    })
}

/// Formats a price with three significant digits or more.
fn money(price: f64) -> String {
    let zeros = (-price.log10().floor()).clamp(0.0, 12.0) as usize;
    format!("{price:.*}", zeros + 2)
}
