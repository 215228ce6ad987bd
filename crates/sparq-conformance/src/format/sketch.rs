//! Cases with a key sketch of 8 or 4 bits.
//!
//! As in the paper, top_k and local_window count the current token. Nothing is masked, and the
//! ranges of the codes cover all positions.

use sparq::methods::{Anchors, Components, GroupScore, Magnitude, MeanValue};
use sparq::{RowFormat, Sketch, SparqConfig};

use super::Reader;
use crate::case::{Expected, ExpectedSketch, Kind};
use crate::{Array, Case, ConformanceError, Problem};

pub(super) fn read(reader: &Reader<'_>) -> Result<Case, ConformanceError> {
    let problem = reader.problem()?;
    let config = config(reader, &problem)?;
    let inputs = super::inputs(reader, &problem)?;
    let channels = problem.per_kv_head(problem.head_dim);
    let rank = problem.per_kv_head(config.rank);
    let no_padding = vec![0; problem.batch];
    Ok(Case {
        name: reader.name()?,
        kind: Kind::Sketch,
        problem,
        config,
        left_padding: no_padding.clone(),
        inputs,
        expected: Expected {
            components: reader.ascending("top_r", &rank, problem.head_dim)?,
            logits: reader.finite("score", &problem.logits())?,
            selected: super::selected(reader, &problem, &config, &no_padding)?,
            alpha: Some(reader.finite("alpha", &[problem.batch, problem.n_heads])?),
            mean_value: reader.finite("mean_value", &channels)?,
            output: reader.finite("output", &problem.query())?,
            sketch: Some(ExpectedSketch {
                codes: codes(reader, &problem, &config)?,
                zero_point: reader.finite("lo", &channels)?,
                scale: scales(reader, &channels)?,
            }),
        },
    })
}

fn config(reader: &Reader<'_>, problem: &Problem) -> Result<SparqConfig, ConformanceError> {
    let config = SparqConfig {
        rank: reader.number("rank", 1)?,
        top_k: reader.number("top_k", 1)?,
        local_window: reader.number("local_window", 0)?,
        sketch: reader.choice("sketch_bits", &[("4", Sketch::Bits4), ("8", Sketch::Bits8)])?,
        mean_value: match reader.boolean("mean_value")? {
            true => MeanValue::Always,
            false => MeanValue::Never,
        },
        group_score: reader.choice(
            "group_score",
            &[
                ("probabilities", GroupScore::Probabilities),
                ("logits", GroupScore::Logits),
            ],
        )?,
        components: reader.choice(
            "components",
            &[
                ("sum_abs", Components::SumAbs),
                ("abs_sum", Components::AbsSum),
            ],
        )?,
        magnitude: Magnitude::Query,
        rows: RowFormat::Float,
        anchors: Anchors::All,
    };
    super::validate(reader, &config, problem)?;
    Ok(config)
}

fn codes(
    reader: &Reader<'_>,
    problem: &Problem,
    config: &SparqConfig,
) -> Result<Array<u8>, ConformanceError> {
    let [batch, kv_heads, seq, head_dim] = problem.cache();
    let most = match config.sketch {
        Sketch::Bits4 => 15,
        _ => 255,
    };
    reader.bytes("codes", &[batch, kv_heads, head_dim, seq], most)
}

fn scales(reader: &Reader<'_>, channels: &[usize]) -> Result<Array<f32>, ConformanceError> {
    let scales = reader.finite("step", channels)?;
    match scales.values().iter().find(|&&scale| scale < 0.0) {
        Some(found) => Err(reader.error("step", "numbers of at least 0", found)),
        None => Ok(scales),
    }
}
