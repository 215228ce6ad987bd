//! The best of each method on each shape.

use sparq::Sketch;

use crate::bandwidth::Bandwidth;
use crate::contender::{MethodName, Stage};
use crate::peers::Peers;
use crate::report::{Row, Run, sketch_name};
use crate::shape::{CacheType, Shape};
use crate::table::{Table, digits, or_dash};

/// The shapes of a run in the order in which they were measured.
pub fn shapes(run: &Run) -> Vec<(Shape, CacheType)> {
    let mut shapes = Vec::new();
    for row in &run.rows {
        if !shapes.contains(&(row.shape, row.dtype)) {
            shapes.push((row.shape, row.dtype));
        }
    }
    shapes
}

/// The quickest measured row of those that `wanted` takes, whole steps only.
pub fn quickest(
    run: &Run,
    (shape, dtype): (Shape, CacheType),
    wanted: impl Fn(&Row) -> bool,
) -> Option<(&Row, f64)> {
    run.rows
        .iter()
        .filter(|row| row.shape == shape && row.dtype == dtype && row.stage == Stage::Whole)
        .filter(|row| wanted(row))
        .filter_map(|row| Some((row, row.median_us()?)))
        .min_by(|a, b| a.1.total_cmp(&b.1))
}

/// The quickest dense attention known for a shape, PyTorch's included.
pub fn quickest_dense(run: &Run, peers: Option<&Peers>, case: (Shape, CacheType)) -> Option<f64> {
    let own = quickest(run, case, |row| row.method != MethodName::Sparq).map(|(_, us)| us);
    let theirs = peers
        .and_then(|peers| peers.find(&case.0, case.1))
        .map(|row| row.best_dense_us);
    own.into_iter().chain(theirs).min_by(f64::total_cmp)
}

/// One line for each shape: dense attention, SparQ with each sketch, and what that gains.
pub fn table(run: &Run, peers: Option<&Peers>) -> Table {
    let sketches = sketches(run);
    let mut headings: Vec<String> = ["B", "heads", "S", "cache", "dense us", "dense (burn) us"]
        .map(String::from)
        .to_vec();
    if peers.is_some() {
        headings.push("dense (PyTorch) us".into());
    }
    for &sketch in &sketches {
        headings.push(format!("SparQ {} us", sketch_name(sketch)));
    }
    headings.extend(["gain".into(), "floor us".into()]);
    let mut table = Table::new(headings);
    for case in shapes(run) {
        let (shape, dtype) = case;
        let best = |wanted: &dyn Fn(&Row) -> bool| quickest(run, case, wanted);
        let time = |found: Option<(&Row, f64)>| or_dash(found.map(|(_, us)| us));
        let mut cells = vec![
            shape.batch.to_string(),
            format!("{}/{}", shape.heads, shape.kv_heads),
            shape.seq_len.to_string(),
            dtype.name().to_owned(),
            time(best(&|row| row.method == MethodName::Dense)),
            time(best(&|row| row.method == MethodName::DenseBurn)),
        ];
        if let Some(peers) = peers {
            cells.push(or_dash(
                peers.find(&shape, dtype).map(|row| row.best_dense_us),
            ));
        }
        for &sketch in &sketches {
            cells.push(time(best(&|row| has_sketch(row, sketch))));
        }
        let sparq = best(&|row| row.method == MethodName::Sparq);
        let dense = quickest_dense(run, peers, case);
        cells.push(or_dash(sparq.zip(dense).map(|((_, us), dense)| dense / us)));
        cells.push(sparq.map_or("-".into(), |(row, _)| floor(&run.bandwidth, row)));
        table.row(cells);
    }
    table
}

fn floor(bandwidth: &Bandwidth, row: &Row) -> String {
    digits(bandwidth.floor_us(row.bytes))
}

fn has_sketch(row: &Row, sketch: Sketch) -> bool {
    row.settings
        .is_some_and(|settings| settings.sketch == sketch)
}

fn sketches(run: &Run) -> Vec<Sketch> {
    [Sketch::Full, Sketch::Bits8, Sketch::Bits4]
        .into_iter()
        .filter(|&sketch| run.rows.iter().any(|row| has_sketch(row, sketch)))
        .collect()
}
