//! Time against S with the floors that bandwidth sets, and the gain against B.

use std::collections::BTreeMap;

use anyhow::Result;
use sparq::Sketch;
use sparq_output::charts::{Axis, Chart, Layout, Paint, Scale, Series};

use super::{Named, summary};
use crate::contender::MethodName;
use crate::peers::Peers;
use crate::report::{Report, Run, sketch_name};
use crate::shape::{CacheType, Shape};
use crate::table::positions;

/// What the names of these plots begin with, by which a rendering knows its own.
pub const PREFIX: &str = "op-";

/// A plot.
#[derive(Clone, Debug)]
pub struct Plot {
    /// The name of its file, without `.svg`.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// The picture.
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

/// The plots of a run: one for each set of shapes that differ in S alone, and in B alone.
pub fn of_run(named: &Named<Report>, run: &Run) -> Result<Vec<Plot>> {
    let peers = named.report.peers.as_ref();
    let prefix = file_name(&format!("{PREFIX}{}-{}", named.name, run.device));
    let hardware = run.gpu.as_deref().unwrap_or(&run.device);
    let mut plots = Vec::new();

    for (fixed, cases) in groups(run, |shape| Shape {
        seq_len: 0,
        ..shape
    }) {
        let (shape, dtype) = fixed;
        let heads = heads(&shape);
        let chart = Chart {
            title: format!(
                "One decode step, {hardware}: B={}, {heads}, {}",
                shape.batch,
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
            series: times(run, peers, &cases),
        };
        plots.push(Plot {
            name: format!(
                "{prefix}-time-b{}-h{}-{}-d{}-{}",
                shape.batch,
                shape.heads,
                shape.kv_heads,
                shape.head_dim,
                dtype.name()
            ),
            title: chart.title.clone(),
            svg: chart.svg(Layout::File)?,
        });
    }
    for (fixed, cases) in groups(run, |shape| Shape { batch: 0, ..shape }) {
        let (shape, dtype) = fixed;
        let heads = heads(&shape);
        let chart = Chart {
            title: format!(
                "Gain over dense, {hardware}: S={}, {heads}, {}",
                positions(shape.seq_len),
                dtype.name()
            ),
            x: Axis {
                label: "B, sequences",
                format: |b| b.to_string(),
            },
            y: Axis {
                label: "times quicker than the quickest dense",
                format: |gain| gain.to_string(),
            },
            y_scale: Scale::FromZero,
            ticks: None,
            series: gains(run, peers, &cases),
        };
        plots.push(Plot {
            name: format!(
                "{prefix}-gain-s{}-h{}-{}-d{}-{}",
                shape.seq_len,
                shape.heads,
                shape.kv_heads,
                shape.head_dim,
                dtype.name()
            ),
            title: chart.title.clone(),
            svg: chart.svg(Layout::File)?,
        });
    }
    Ok(plots)
}

type Case = (Shape, CacheType);

/// The cases that are the same after `fix`, where there are at least two and SparQ was measured on them.
fn groups(run: &Run, fix: impl Fn(Shape) -> Shape) -> BTreeMap<Case, Vec<Case>> {
    let mut groups: BTreeMap<Case, Vec<Case>> = BTreeMap::new();
    for case in summary::shapes(run) {
        let measured = summary::quickest(run, case, |row| row.method == MethodName::Sparq);
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

/// A line of a plot: a method with the settings that don't follow S.
struct Family {
    label: String,
    method: MethodName,
    color: Paint,
    /// Of a floor.
    sketch: Option<Sketch>,
}

/// The families of these cases in the order of the rows; every plot gives each the same colour.
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

fn times(run: &Run, peers: Option<&Peers>, cases: &[Case]) -> Vec<Series> {
    let (mut all, mut floors) = (Vec::new(), Vec::<Series>::new());
    for family in families(run, cases) {
        let best = |case: &Case| summary::quickest(run, *case, |row| row.family() == family.label);
        let mut series = Series::new(&family.label, family.color);
        let label = match family.sketch {
            Some(sketch) => format!("floor of SparQ {}", sketch_name(sketch)),
            None => "floor of dense".into(),
        };
        let mut floor = Series::dashed(&label, family.color);
        for case in cases {
            if let Some((row, us)) = best(case) {
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
    if let Some(peers) = peers {
        let mut series = Series::new("dense (PyTorch)", Paint::Purple);
        series.points = cases
            .iter()
            .filter_map(|(shape, dtype)| {
                Some((
                    shape.seq_len as f64,
                    peers.find(shape, *dtype)?.best_dense_us,
                ))
            })
            .collect();
        all.push(series);
    }
    all.extend(floors);
    all.retain(|series| !series.points.is_empty());
    all
}

fn gains(run: &Run, peers: Option<&Peers>, cases: &[Case]) -> Vec<Series> {
    let mut all = Vec::new();
    for family in families(run, cases) {
        if family.method != MethodName::Sparq {
            continue;
        }
        let mut series = Series::new(&family.label, family.color);
        for case in cases {
            let best = summary::quickest(run, *case, |row| row.family() == family.label);
            let dense = summary::quickest_dense(run, peers, *case);
            if let Some(((_, us), dense)) = best.zip(dense) {
                series.points.push((case.0.batch as f64, dense / us));
            }
        }
        all.push(series);
    }
    let ends = cases.first().zip(cases.last());
    if let Some(((first, _), (last, _))) = ends {
        let mut even = Series::dashed("as quick as dense", Paint::Grey);
        even.points = vec![(first.batch as f64, 1.0), (last.batch as f64, 1.0)];
        all.push(even);
    }
    all.retain(|series| !series.points.is_empty());
    all
}

fn heads(shape: &Shape) -> String {
    format!(
        "{} heads / {} of K and V, d={}",
        shape.heads, shape.kv_heads, shape.head_dim
    )
}

/// The text as part of a file name.
fn file_name(text: &str) -> String {
    text.chars()
        .map(|c| match c.is_ascii_alphanumeric() || "-_.".contains(c) {
            true => c,
            false => '-',
        })
        .collect()
}
