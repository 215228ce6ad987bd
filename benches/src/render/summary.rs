//! The best of each method on each shape.

use sparq::Sketch;

use crate::bandwidth::Bandwidth;
use crate::contender::MethodName;
use crate::peers::Peers;
use crate::preset::{GOALS, Goal};
use crate::report::{Row, Run, sketch_name};
use crate::shape::{CacheType, Shape};
use crate::table::{Table, digits, or_dash};
use crate::timing::Mode;

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

/// The quickest measured row of those that `wanted` takes.
pub fn quickest(
    run: &Run,
    (shape, dtype): (Shape, CacheType),
    wanted: impl Fn(&Row) -> bool,
) -> Option<(&Row, f64)> {
    run.rows
        .iter()
        .filter(|row| row.shape == shape && row.dtype == dtype)
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
///
/// SparQ is the one whose groups agree as in the paper; where they were measured to agree otherwise too, these have columns of their own.
pub fn table(run: &Run, peers: Option<&Peers>) -> Table {
    let burn = run
        .rows
        .iter()
        .any(|row| row.method == MethodName::DenseBurn);
    let families = families(run);
    let mut headings: Vec<String> = ["B", "heads", "S", "cache", "dense us"]
        .map(String::from)
        .to_vec();
    if burn {
        headings.push("dense (burn) us".into());
    }
    if peers.is_some() {
        headings.push("dense (PyTorch) us".into());
    }
    headings.extend(families.iter().map(|family| format!("{family} us")));
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
        ];
        if burn {
            cells.push(time(best(&|row| row.method == MethodName::DenseBurn)));
        }
        if let Some(peers) = peers {
            cells.push(or_dash(
                peers.find(&shape, dtype).map(|row| row.best_dense_us),
            ));
        }
        for family in &families {
            cells.push(time(best(&|row| row.family() == *family)));
        }
        let sparq = best(&Row::is_default_sparq);
        let dense = quickest_dense(run, peers, case);
        cells.push(or_dash(sparq.zip(dense).map(|((_, us), dense)| dense / us)));
        cells.push(sparq.map_or("-".into(), |(row, _)| floor(&run.bandwidth, row)));
        table.row(cells);
    }
    table
}

/// What is reached of the goals: for each shape and sketch the time, the goal, the floor and the gain over the quickest dense attention known.
pub fn goals(run: &Run, peers: Option<&Peers>) -> Table {
    let mut headings = ["B", "heads", "S", "group", "dense (PyTorch) us", "dense us"]
        .map(String::from)
        .to_vec();
    for sketch in [Sketch::Full, Sketch::Bits4] {
        let columns = ["us", "goal us", "floor us", "gain"];
        headings.extend(columns.map(|column| format!("{}: {column}", sketch_name(sketch))));
    }
    let mut table = Table::new(headings);
    let ways = |goal: &Goal| match goal.shape.group_size() {
        1 => vec![(true, "")],
        _ => vec![(true, "probabilities"), (false, "as one query")],
    };
    let lines = GOALS
        .iter()
        .flat_map(|goal| ways(goal).into_iter().map(move |way| (goal, way)));
    for (goal, (as_in_paper, way)) in lines {
        let case = (goal.shape, CacheType::F16);
        let dense = quickest(run, case, |row| row.method == MethodName::Dense);
        let peer = peers.and_then(|peers| peers.find(&case.0, case.1));
        let mut cells = vec![
            goal.shape.batch.to_string(),
            format!("{}/{}", goal.shape.heads, goal.shape.kv_heads),
            goal.shape.seq_len.to_string(),
            way.to_owned(),
            or_dash(peer.map(|row| row.best_dense_us)),
            or_dash(dense.map(|(_, us)| us)),
        ];
        let quickest_dense = quickest_dense(run, peers, case);
        for sketch in [Sketch::Full, Sketch::Bits4] {
            let found = quickest(run, case, |row| {
                row.is_default_sparq() == as_in_paper
                    && row.mode == Mode::Captured
                    && row.settings.is_some_and(|settings| {
                        (settings.sketch, settings.rank, settings.top_k) == (sketch, 32, 128)
                    })
            });
            let us = found.map(|(_, us)| us);
            // What is reached is marked.
            let mark = match us.zip(goal.us(sketch)) {
                Some((us, goal)) if us <= goal => " ✓",
                _ => "",
            };
            cells.push(or_dash(us) + mark);
            cells.push(or_dash(goal.us(sketch)));
            cells.push(found.map_or("-".into(), |(row, _)| floor(&run.bandwidth, row)));
            cells.push(or_dash(
                quickest_dense.zip(us).map(|(dense, us)| dense / us),
            ));
        }
        table.row(cells);
    }
    table
}

fn floor(bandwidth: &Bandwidth, row: &Row) -> String {
    digits(bandwidth.floor_us(row.bytes))
}

/// SparQ's sketches and ways to agree, those that agree as in the paper first.
fn families(run: &Run) -> Vec<String> {
    let mut families: Vec<(bool, String)> = Vec::new();
    for row in &run.rows {
        let family = (!row.is_default_sparq(), row.family());
        if row.method == MethodName::Sparq && !families.contains(&family) {
            families.push(family);
        }
    }
    families.sort_by_key(|(other, _)| *other);
    families.into_iter().map(|(_, family)| family).collect()
}
