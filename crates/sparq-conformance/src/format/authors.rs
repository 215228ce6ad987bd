//! Cases of the paper's authors: one decode step of their `AnnAttention`.
//!
//! Their code differs from the paper and from this library in its counting: (k, local_k) exclude
//! the current token, so they are (k + 1, local_k + 1) here. The heads of a group rank by the sum
//! of their logits. Masked positions rank last, and fill up the selection if there are too few
//! valid ones.

use sparq::methods::{Anchors, Components, GroupScore, Magnitude, MeanValue};
use sparq::{RowFormat, Sketch, SparqConfig};

use super::Reader;
use crate::case::{Expected, Kind};
use crate::{Array, Case, ConformanceError, Problem};

pub(super) fn read(reader: &Reader<'_>) -> Result<Case, ConformanceError> {
    let problem = reader.problem()?;
    let config = config(reader, &problem)?;
    let inputs = super::inputs(reader, &problem)?;
    let left_padding = left_padding(reader, &problem)?;
    let rank = problem.per_kv_head(config.rank);
    let expected = Expected {
        components: reader.ascending("top_r", &rank, problem.head_dim)?,
        logits: reader.finite("score", &problem.logits())?,
        selected: super::selected(reader, &problem, &config, &left_padding)?,
        alpha: alpha(reader, &problem, &config)?,
        mean_value: reader.finite("mean_value", &problem.per_kv_head(problem.head_dim))?,
        output: reader.finite("output", &problem.query())?,
        sketch: None,
    };
    check_weights(reader, &problem, &expected.selected)?;
    Ok(Case {
        name: reader.name()?,
        kind: Kind::Authors,
        problem,
        config,
        left_padding,
        inputs,
        expected,
    })
}

fn config(reader: &Reader<'_>, problem: &Problem) -> Result<SparqConfig, ConformanceError> {
    let and_current = |key| {
        let number = reader.number(key, 0)?;
        let too_large = || reader.error(key, "a smaller number", number);
        number.checked_add(1).ok_or_else(too_large)
    };
    let config = SparqConfig {
        rank: reader.number("rank", 1)?,
        top_k: and_current("k")?,
        local_window: and_current("local_k")?,
        sketch: Sketch::Full,
        mean_value: match reader.boolean("reallocate_to_mean_value")? {
            true => MeanValue::Always,
            false => MeanValue::Never,
        },
        group_score: GroupScore::Logits,
        components: Components::SumAbs,
        magnitude: Magnitude::Query,
        rows: RowFormat::Float,
        anchors: Anchors::All,
    };
    super::validate(reader, &config, problem)?;
    Ok(config)
}

/// Reads the left padding of each sequence. Metadata and mask must agree.
fn left_padding(reader: &Reader<'_>, problem: &Problem) -> Result<Vec<usize>, ConformanceError> {
    let masked = reader.choice(
        "mask",
        &[
            ("none", None),
            ("finfo_min", Some(f32::MIN)),
            ("neg_inf", Some(f32::NEG_INFINITY)),
        ],
    )?;
    let lengths = "a JSON list of lengths, one per sequence or none";
    let mut padding: Vec<usize> = reader.json("pad", lengths)?;
    if padding.is_empty() {
        padding = vec![0; problem.batch];
    }
    if padding.len() != problem.batch {
        let expected = format!("{} lengths, one per sequence, or none", problem.batch);
        return Err(reader.error("pad", expected, padding.len()));
    }
    if let Some(length) = padding.iter().find(|&&length| length >= problem.seq) {
        let expected = format!("lengths below seq ({})", problem.seq);
        return Err(reader.error("pad", expected, length));
    }
    let logmask = reader.mask("logmask", &[problem.batch, problem.seq])?;
    for (b, (row, &length)) in logmask.rows().zip(&padding).enumerate() {
        for (s, &found) in row.iter().enumerate() {
            let expected = if s < length { masked } else { Some(0.0) };
            if expected != Some(found) {
                let expected = match expected {
                    Some(expected) => format!("{expected} at [{b}, {s}], to match pad and mask"),
                    None => format!("no left padding at [{b}, {s}], since mask is none"),
                };
                return Err(reader.error("logmask", expected, found));
            }
        }
    }
    Ok(padding)
}

/// Reads alpha, which the authors' code only computes if it reallocates to the mean value.
fn alpha(
    reader: &Reader<'_>,
    problem: &Problem,
    config: &SparqConfig,
) -> Result<Option<Array<f32>>, ConformanceError> {
    let alpha = reader.finite("alpha", &[problem.batch, problem.n_heads])?;
    if config.mean_value == MeanValue::Always {
        return Ok(Some(alpha));
    }
    // Without reallocation, the file holds the sum of the exact weights, which is 1 up to rounding.
    let other = |alpha: &&f32| (**alpha - 1.0).abs() > 1e-5;
    match alpha.values().iter().find(other) {
        Some(found) => Err(reader.error("alpha", "1 without reallocation", found)),
        None => Ok(None),
    }
}

/// Checks that the weights do not contradict the selection. Devices do not return weights to
/// compare.
fn check_weights(
    reader: &Reader<'_>,
    problem: &Problem,
    selected: &Array<u8>,
) -> Result<(), ConformanceError> {
    let shape = [problem.batch, problem.n_heads, problem.seq];
    let weights = reader.finite("weights", &shape)?;
    // The heads of a group are consecutive, so query head i of all reads batch head i / g.
    for (head, weights) in weights.rows().enumerate() {
        let batch_head = head / problem.group_size();
        let selected = &selected.values()[batch_head * problem.seq..][..problem.seq];
        let stray = weights
            .iter()
            .zip(selected)
            .position(|(weight, selected)| *weight != 0.0 && *selected == 0);
        if let Some(s) = stray {
            let expected =
                format!("0 at position {s} of query head {head} of all, which is not selected");
            return Err(reader.error("weights", expected, weights[s]));
        }
    }
    Ok(())
}
