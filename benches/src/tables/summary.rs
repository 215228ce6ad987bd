//! One line per shape: the fastest time of each method.

use sparq::Sketch;

use sparq_measure::attention::{MethodName, Row, Run, sketch_name};
use sparq_measure::bandwidth::Bandwidth;
use sparq_measure::shape::{CacheType, Shape};
use sparq_measure::timing::Mode;

use crate::baselines::{AttentionBaseline, Baselines};
use crate::goals::{GOALS, Goal};
use sparq_output::numbers::{digits, or_dash};
use sparq_output::table::Table;

/// The shapes of a run, in the order of measurement.
pub fn shapes(run: &Run) -> Vec<(Shape, CacheType)> {
    let mut shapes = Vec::new();
    for row in &run.rows {
        if !shapes.contains(&(row.shape, row.dtype)) {
            shapes.push((row.shape, row.dtype));
        }
    }
    shapes
}

/// The fastest measured row that `wanted` accepts, and its time in microseconds.
pub fn fastest(
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

/// The time of the fastest dense attention on a shape in microseconds, PyTorch's included.
pub fn fastest_dense(
    run: &Run,
    baselines: Option<&Baselines<AttentionBaseline>>,
    case: (Shape, CacheType),
) -> Option<f64> {
    let own = fastest(run, case, |row| row.settings.is_none()).map(|(_, us)| us);
    let theirs = baselines.and_then(|baselines| baselines.best_us(&case));
    own.into_iter().chain(theirs).min_by(f64::total_cmp)
}

/// One line per shape: dense attention, SparQ with each sketch and group rule, and the gain of
/// SparQ with the group rules of the paper.
pub fn table(run: &Run, baselines: Option<&Baselines<AttentionBaseline>>) -> Table {
    let burn = run
        .rows
        .iter()
        .any(|row| row.method == MethodName::DenseBurn);
    let families = families(run);
    let mut headings: Vec<String> = ["B", "heads", "S", "type", "dense us"]
        .map(String::from)
        .to_vec();
    if burn {
        headings.push("dense (burn) us".into());
    }
    if baselines.is_some() {
        headings.push("dense (PyTorch) us".into());
    }
    headings.extend(families.iter().map(|family| format!("{family} us")));
    headings.extend(["gain".into(), "floor us".into()]);
    let mut table = Table::new(headings);
    for case in shapes(run) {
        let (shape, dtype) = case;
        let fastest_of = |wanted: &dyn Fn(&Row) -> bool| fastest(run, case, wanted);
        let time = |found: Option<(&Row, f64)>| or_dash(found.map(|(_, us)| us));
        let mut cells = vec![
            shape.batch.to_string(),
            format!("{}/{}", shape.heads, shape.kv_heads),
            shape.seq_len.to_string(),
            dtype.name().to_owned(),
            time(fastest_of(&|row| row.method == MethodName::Dense)),
        ];
        if burn {
            cells.push(time(fastest_of(&|row| row.method == MethodName::DenseBurn)));
        }
        if let Some(baselines) = baselines {
            cells.push(or_dash(baselines.best_us(&case)));
        }
        for family in &families {
            cells.push(time(fastest_of(&|row| row.family() == *family)));
        }
        let sparq = fastest_of(&Row::is_default_sparq);
        let dense = fastest_dense(run, baselines, case);
        cells.push(or_dash(sparq.zip(dense).map(|((_, us), dense)| dense / us)));
        cells.push(sparq.map_or("-".into(), |(row, _)| floor(&run.bandwidth, row)));
        table.row(cells);
    }
    table
}

/// The goals: for each shape and sketch the time, the goal, the floor and the gain over the fastest
/// dense attention. A mark follows the times that reach their goal.
pub fn goals(run: &Run, baselines: Option<&Baselines<AttentionBaseline>>) -> Table {
    let mut headings = ["B", "heads", "S", "group", "dense (PyTorch) us", "dense us"]
        .map(String::from)
        .to_vec();
    for sketch in [Sketch::Full, Sketch::Bits4] {
        let columns = ["time us", "goal us", "floor us", "gain"];
        headings.extend(columns.map(|column| format!("{}: {column}", sketch_name(sketch))));
    }
    let mut table = Table::new(headings);
    let rules = |goal: &Goal| match goal.shape.group_size() {
        1 => vec![(true, "")],
        _ => vec![(true, "probabilities"), (false, "as one query")],
    };
    let lines = GOALS
        .iter()
        .flat_map(|goal| rules(goal).into_iter().map(move |rule| (goal, rule)));
    for (goal, (of_paper, rule)) in lines {
        let case = (goal.shape, CacheType::F16);
        let dense = fastest(run, case, |row| row.method == MethodName::Dense);
        let torch = baselines.and_then(|baselines| baselines.best_us(&case));
        let mut cells = vec![
            goal.shape.batch.to_string(),
            format!("{}/{}", goal.shape.heads, goal.shape.kv_heads),
            goal.shape.seq_len.to_string(),
            rule.to_owned(),
            or_dash(torch),
            or_dash(dense.map(|(_, us)| us)),
        ];
        let fastest_dense = fastest_dense(run, baselines, case);
        for sketch in [Sketch::Full, Sketch::Bits4] {
            let found = fastest(run, case, |row| {
                row.method == MethodName::Sparq
                    && row.is_default_sparq() == of_paper
                    && row.mode == Mode::Captured
                    && row.settings.is_some_and(|settings| {
                        (settings.sketch, settings.rank, settings.top_k) == (sketch, 32, 128)
                    })
            });
            let us = found.map(|(_, us)| us);
            let mark = match us.zip(goal.us(sketch)) {
                Some((us, goal)) if us <= goal => " ✓",
                _ => "",
            };
            cells.push(or_dash(us) + mark);
            cells.push(or_dash(goal.us(sketch)));
            cells.push(found.map_or("-".into(), |(row, _)| floor(&run.bandwidth, row)));
            cells.push(or_dash(fastest_dense.zip(us).map(|(dense, us)| dense / us)));
        }
        table.row(cells);
    }
    table
}

fn floor(bandwidth: &Bandwidth, row: &Row) -> String {
    digits(bandwidth.floor_us(row.bytes))
}

/// The sketches and group rules of SparQ in a run, the rules of the paper first.
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
