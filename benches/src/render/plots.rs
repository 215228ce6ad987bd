//! Plots: time against S with the floors of the memory bandwidth, and gain against B.

use std::collections::BTreeMap;

use anyhow::Result;
use sparq::Sketch;
use sparq_measure::attention::{MethodName, Run, sketch_name};
use sparq_measure::shape::{CacheType, Shape};
use sparq_output::charts::{Axis, Chart, Layout, Paint, Scale, Series};

use super::Named;
use crate::baselines::{AttentionBaseline, Baselines};
use crate::report::Report;
use crate::tables::summary;
use sparq_output::numbers::positions;

/// The prefix of the names of rendered plots.
pub const PREFIX: &str = "op-";

/// A plot.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Name of the file without `.svg`.
    pub name: String,
    /// Title, also the alternative text.
    pub title: String,
    /// The image.
    pub svg: String,
}

/// The plots of all runs of a report.
pub fn of(named: &Named<Report>) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    for run in &named.report.runs {
        plots.extend(of_run(named, run)?);
    }
    Ok(plots)
}

/// The plots of a run: one per set of shapes that differ only in S, and one per set that differ
/// only in B.
pub fn of_run(named: &Named<Report>, run: &Run) -> Result<Vec<Plot>> {
    let baselines = named.report.baselines.as_ref();
    let prefix = file_name(&format!("{PREFIX}{}-{}", named.name, run.device));
    let hardware = run.gpu.as_deref().unwrap_or(&run.device);
    let mut plots = Vec::new();
    for ((shape, dtype), cases) in groups(run, |shape| Shape {
        seq_len: 0,
        ..shape
    }) {
        let (heads, batch) = (heads(&shape), shape.batch);
        plots.push(plot(
            format!("{prefix}-time-b{batch}-{}", sizes(&shape, dtype)),
            Chart {
                title: format!(
                    "One decode step, {hardware}: B={batch}, {heads}, {}",
                    dtype.name()
                ),
                x: Axis {
                    label: "S, positions in the cache",
                    format: |s| positions(s as usize),
                },
                y: Axis {
                    label: "time, us",
                    format: |us| us.to_string(),
                },
                y_scale: Scale::Log,
                ticks: None,
                series: times(run, baselines, &cases),
            },
        )?);
    }
    for ((shape, dtype), cases) in groups(run, |shape| Shape { batch: 0, ..shape }) {
        let (heads, seq_len) = (heads(&shape), shape.seq_len);
        plots.push(plot(
            format!("{prefix}-gain-s{seq_len}-{}", sizes(&shape, dtype)),
            Chart {
                title: format!(
                    "Gain over dense, {hardware}: S={}, {heads}, {}",
                    positions(seq_len),
                    dtype.name()
                ),
                x: Axis {
                    label: "B, sequences",
                    format: |b| b.to_string(),
                },
                y: Axis {
                    label: "speedup over the fastest dense attention",
                    format: |gain| gain.to_string(),
                },
                y_scale: Scale::FromZero,
                ticks: None,
                series: gains(run, baselines, &cases),
            },
        )?);
    }
    Ok(plots)
}

fn plot(name: String, chart: Chart) -> Result<Plot> {
    Ok(Plot {
        name,
        svg: chart.svg(Layout::File)?,
        title: chart.title,
    })
}

type Case = (Shape, CacheType);
type Torch<'a> = Option<&'a Baselines<AttentionBaseline>>;

/// Groups the cases with a time of SparQ that are equal after `fix`, if there are at least two.
fn groups(run: &Run, fix: impl Fn(Shape) -> Shape) -> BTreeMap<Case, Vec<Case>> {
    let mut groups: BTreeMap<Case, Vec<Case>> = BTreeMap::new();
    for case in summary::shapes(run) {
        let measured = summary::fastest(run, case, |row| row.method == MethodName::Sparq);
        if measured.is_some() {
            groups.entry((fix(case.0), case.1)).or_default().push(case);
        }
    }
    groups.retain(|_, cases| cases.len() >= 2);
    for cases in groups.values_mut() {
        cases.sort();
    }
    groups
}

/// A line of a plot: a method with the settings that do not depend on S.
struct Family {
    label: String,
    method: MethodName,
    color: Paint,
    /// The sketch, which determines the floor.
    sketch: Option<Sketch>,
}

/// The families of these cases, in the order of the rows. Colours are the same in every plot.
fn families(run: &Run, cases: &[Case]) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for row in &run.rows {
        let label = row.family();
        let known = families.iter().any(|family| family.label == label);
        if known || !cases.contains(&(row.shape, row.dtype)) {
            continue;
        }
        let sketch = row.settings.map(|settings| settings.sketch);
        families.push(Family {
            color: match (row.method, sketch, row.is_default_sparq()) {
                (MethodName::Dense, ..) => Paint::Black,
                (MethodName::DenseBurn, ..) => Paint::Grey,
                (_, Some(Sketch::Bits8), _) => Paint::Green,
                (_, Some(Sketch::Bits4), true) => Paint::Blue,
                (_, Some(Sketch::Bits4), false) => Paint::Sky,
                (_, _, true) => Paint::Vermilion,
                (_, _, false) => Paint::Orange,
            },
            label,
            method: row.method,
            sketch,
        });
    }
    families
}

fn times(run: &Run, baselines: Torch<'_>, cases: &[Case]) -> Vec<Series> {
    let (mut all, mut floors) = (Vec::new(), Vec::<Series>::new());
    for family in families(run, cases) {
        let fastest =
            |case: &Case| summary::fastest(run, *case, |row| row.family() == family.label);
        let mut series = Series::new(&family.label, family.color);
        let label = match family.sketch {
            Some(sketch) => format!("floor of SparQ {}", sketch_name(sketch)),
            None => "floor of dense".into(),
        };
        let mut floor = Series::dashed(&label, family.color);
        for case in cases {
            if let Some((row, us)) = fastest(case) {
                let s = case.0.seq_len as f64;
                series.points.push((s, us));
                floor.points.push((s, run.bandwidth.floor_us(row.bytes)));
            }
        }
        all.push(series);
        if !floors.iter().any(|other| other.label == label) {
            floors.push(floor);
        }
    }
    if let Some(baselines) = baselines {
        let mut series = Series::new("dense (PyTorch)", Paint::Purple);
        series.points = cases
            .iter()
            .filter_map(|&case| Some((case.0.seq_len as f64, baselines.best_us(&case)?)))
            .collect();
        all.push(series);
    }
    all.extend(floors);
    all.retain(|series| !series.points.is_empty());
    all
}

fn gains(run: &Run, baselines: Torch<'_>, cases: &[Case]) -> Vec<Series> {
    let mut all = Vec::new();
    for family in families(run, cases) {
        if family.method != MethodName::Sparq {
            continue;
        }
        let mut series = Series::new(&family.label, family.color);
        for case in cases {
            let sparq = summary::fastest(run, *case, |row| row.family() == family.label);
            let dense = summary::fastest_dense(run, baselines, *case);
            if let Some(((_, us), dense)) = sparq.zip(dense) {
                series.points.push((case.0.batch as f64, dense / us));
            }
        }
        all.push(series);
    }
    let ends = cases.first().zip(cases.last());
    if let Some(((first, _), (last, _))) = ends {
        let mut even = Series::dashed("same time as dense", Paint::Grey);
        even.points = vec![(first.batch as f64, 1.0), (last.batch as f64, 1.0)];
        all.push(even);
    }
    all.retain(|series| !series.points.is_empty());
    all
}

/// The part of a file name that both kinds of plots share.
fn sizes(shape: &Shape, dtype: CacheType) -> String {
    let (heads, kv_heads, d) = (shape.heads, shape.kv_heads, shape.head_dim);
    format!("h{heads}-{kv_heads}-d{d}-{}", dtype.name())
}

fn heads(shape: &Shape) -> String {
    format!(
        "{} query heads, {} KV heads, d={}",
        shape.heads, shape.kv_heads, shape.head_dim
    )
}

/// Replaces the characters that are not safe in a file name.
fn file_name(text: &str) -> String {
    text.chars()
        .map(|c| match c.is_ascii_alphanumeric() || "-_.".contains(c) {
            true => c,
            false => '-',
        })
        .collect()
}
