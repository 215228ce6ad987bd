//! The cost model's figures from results: least squares over measured steps.
//!
//! The time of a step is a sum of four unknowns with known factors (see [`sparq::cost`]): what every dense step takes, what every SparQ step takes, the time
//! of a byte and the time of a score. The fit minimises the squares of the relative errors, so that a step of 15 us counts as much as one of 1400, and
//! none of the four may be negative: for so few unknowns every set of those that are above 0 is tried.

use std::fmt;

use anyhow::{Result, bail};
use sparq::cost::StepCosts;

use crate::contender::MethodName;
use crate::report::{Report, Row, Run};
use crate::table::{Table, digits, or_dash, percent};

/// Unknowns: us of every dense step, us of every SparQ step, us of 10^3 bytes, us of a score.
const UNKNOWNS: usize = 4;

/// A measured step with the factors of the unknowns.
#[derive(Clone, Copy, Debug)]
struct Point {
    factors: [f64; UNKNOWNS],
    us: f64,
}

/// The figures that describe the runs of one device best, and how well.
#[derive(Clone, Debug)]
pub struct Fit {
    /// The figures.
    pub costs: StepCosts,
    /// Steps that were fitted.
    pub steps: usize,
    /// Mean of the relative errors without their signs.
    pub mean_error: f64,
    /// The largest of them.
    pub worst_error: f64,
    /// Pairs of a dense and a SparQ step on the same shape.
    pub pairs: usize,
    /// Pairs of which the model takes the slower one, with what that loses of the quicker one's time at worst.
    pub wrong: (usize, f64),
    /// Each step beside what the model says.
    pub table: Table,
}

/// Fits the runs of a device in these reports. Where calls were captured, captured ones are fitted: that is how a decoder runs.
///
/// # Errors
/// When too few steps were measured to tell the unknowns apart.
pub fn fit(reports: &[Report], device: &str) -> Result<Fit> {
    let runs: Vec<&Run> = reports
        .iter()
        .flat_map(|report| &report.runs)
        .filter(|run| run.device == device)
        .collect();
    fit_runs(&runs, device)
}

/// Fits runs, all of one device, whose name is for the error.
///
/// # Errors
/// When too few steps were measured to tell the unknowns apart.
pub fn fit_runs(runs: &[&Run], device: &str) -> Result<Fit> {
    let rows: Vec<&Row> = runs.iter().flat_map(|run| fitted(run)).collect();
    let costs = costs(&rows, device)?;
    let errors: Vec<f64> = rows
        .iter()
        .filter_map(|row| Some(error(row, &costs)?.abs()))
        .collect();
    let (pairs, wrong) = decisions(runs, &costs);
    Ok(Fit {
        costs,
        steps: errors.len(),
        mean_error: errors.iter().sum::<f64>() / errors.len() as f64,
        worst_error: errors.iter().copied().fold(0.0, f64::max),
        pairs,
        wrong,
        table: table(&rows, &costs),
    })
}

/// The figures that describe these rows best.
///
/// # Errors
/// When they are too few to tell the unknowns apart.
pub fn costs(rows: &[&Row], device: &str) -> Result<StepCosts> {
    let points: Vec<Point> = rows.iter().filter_map(|row| point(row)).collect();
    let with = |factor: usize| {
        let has = |point: &&Point| point.factors[factor] > 0.0;
        points.iter().filter(has).count()
    };
    if with(0) < 2 || with(1) < 3 {
        bail!(
            "{device}: expected at least 2 dense and 3 SparQ steps above k in the results, found {} and {}",
            with(0),
            with(1)
        );
    }
    let found = solve(&points);
    let [dense_us, sparq_us, kilobyte, score] = found;
    if kilobyte <= 0.0 {
        bail!("{device}: the measured times do not grow with the bytes; measure longer caches");
    }
    Ok(StepCosts {
        dense_us,
        sparq_us,
        gb_per_s: 1.0 / kilobyte,
        // Where scores cost nothing that could be told from bytes, they cost next to nothing.
        scores_per_us: match score > 0.0 {
            true => 1.0 / score,
            false => 1e9,
        },
    })
}

/// How far the model is off a measured row, relative to it; `None` where there is nothing to compare.
pub fn error(row: &Row, costs: &StepCosts) -> Option<f64> {
    let point = point(row)?;
    let [dense_us, sparq_us] = [costs.dense_us, costs.sparq_us];
    let unknowns = [
        dense_us,
        sparq_us,
        1.0 / costs.gb_per_s,
        1.0 / costs.scores_per_us,
    ];
    Some(predicted(&point, &unknowns) / point.us - 1.0)
}

impl fmt::Display for Fit {
    /// The figures as Rust code and as JSON, with how well they fit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let costs = StepCosts {
            dense_us: rounded(self.costs.dense_us),
            sparq_us: rounded(self.costs.sparq_us),
            gb_per_s: rounded(self.costs.gb_per_s),
            scores_per_us: rounded(self.costs.scores_per_us),
        };
        let json = serde_json::to_string(&costs).map_err(|_| fmt::Error)?;
        writeln!(
            f,
            "{} steps, relative error {} on average and {} at most",
            self.steps,
            percent(self.mean_error),
            percent(self.worst_error)
        )?;
        let (wrong, loss) = self.wrong;
        writeln!(
            f,
            "{} pairs of dense and SparQ, of which {wrong} would take the slower one, losing {} at most",
            self.pairs,
            percent(loss)
        )?;
        writeln!(f, "{costs:?}\n{json}")
    }
}

/// Four digits: no fit is worth more.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// The devices of these reports, in their order.
pub fn devices(reports: &[Report]) -> Vec<String> {
    let mut names = Vec::new();
    for run in reports.iter().flat_map(|report| &report.runs) {
        if !names.contains(&run.device) {
            names.push(run.device.clone());
        }
    }
    names
}

/// The measured rows of this project's methods, captured ones where the device has captured any.
pub fn fitted(run: &Run) -> Vec<&Row> {
    let own = |row: &&Row| row.method != MethodName::DenseBurn && row.measured.is_some();
    let captured = |row: &Row| {
        row.measured
            .is_some_and(|measured| measured.hardware_graph == Some(true))
    };
    let any = run.rows.iter().filter(own).any(captured);
    let rows = run.rows.iter().filter(own);
    rows.filter(|&row| captured(row) == any).collect()
}

fn point(row: &Row) -> Option<Point> {
    let (bytes, us) = (row.bytes / 1e3, row.median_us()?);
    let factors = match &row.settings {
        None => [1.0, 0.0, bytes, 0.0],
        // Not above k, and so not what the model calls a SparQ step.
        Some(config) if row.shape.seq_len <= config.top_k => return None,
        Some(config) => {
            let scores = row.shape.step(row.dtype).scores_per_position(config);
            [0.0, 1.0, bytes, (scores * row.shape.seq_len) as f64]
        }
    };
    Some(Point { factors, us })
}

fn predicted(point: &Point, unknowns: &[f64; UNKNOWNS]) -> f64 {
    let products = point.factors.iter().zip(unknowns);
    products.map(|(factor, unknown)| factor * unknown).sum()
}

/// The unknowns, none below 0, with the least sum of squared relative errors.
fn solve(points: &[Point]) -> [f64; UNKNOWNS] {
    let mut best = ([0.0; UNKNOWNS], f64::INFINITY);
    for set in 1..1_usize << UNKNOWNS {
        let free: Vec<usize> = (0..UNKNOWNS).filter(|at| (set >> at) & 1 == 1).collect();
        let Some(found) = solve_free(points, &free) else {
            continue;
        };
        let error: f64 = points
            .iter()
            .map(|point| (predicted(point, &found) / point.us - 1.0).powi(2))
            .sum();
        if found.iter().all(|&unknown| unknown >= 0.0) && error < best.1 {
            best = (found, error);
        }
    }
    best.0
}

/// The least squares over the `free` unknowns, the others 0, by Gauss's normal equations; `None` where these have no one solution.
fn solve_free(points: &[Point], free: &[usize]) -> Option<[f64; UNKNOWNS]> {
    let n = free.len();
    // Factors differ by orders of magnitude: each is scaled by its largest.
    let scale: Vec<f64> = free
        .iter()
        .map(|&at| {
            let sizes = points.iter().map(|point| point.factors[at] / point.us);
            sizes.fold(f64::MIN_POSITIVE, f64::max)
        })
        .collect();
    let mut a = vec![vec![0.0; n + 1]; n];
    for point in points {
        let row: Vec<f64> = free
            .iter()
            .zip(&scale)
            .map(|(&at, scale)| point.factors[at] / point.us / scale)
            .collect();
        for (line, x) in a.iter_mut().zip(&row) {
            for (cell, y) in line.iter_mut().zip(&row) {
                *cell += x * y;
            }
            line[n] += x;
        }
    }
    for column in 0..n {
        let pivot =
            (column..n).max_by(|&i, &j| a[i][column].abs().total_cmp(&a[j][column].abs()))?;
        a.swap(column, pivot);
        if a[column][column].abs() < 1e-12 {
            return None;
        }
        let pivot = a[column].clone();
        for (i, row) in a.iter_mut().enumerate() {
            if i != column {
                let factor = row[column] / pivot[column];
                for (value, from) in row.iter_mut().zip(&pivot) {
                    *value -= factor * from;
                }
            }
        }
    }
    let mut found = [0.0; UNKNOWNS];
    for (i, &at) in free.iter().enumerate() {
        found[at] = a[i][n] / a[i][i] / scale[i];
    }
    Some(found)
}

/// Over all pairs of a dense and a SparQ step on one shape: how many there are, how many are decided wrongly, and what that loses at worst.
pub fn decisions(runs: &[&Run], costs: &StepCosts) -> (usize, (usize, f64)) {
    let (mut pairs, mut wrong, mut loss) = (0, 0, 0.0_f64);
    for run in runs {
        let rows = fitted(run);
        for row in &rows {
            let (Some(config), Some(sparq)) = (&row.settings, row.median_us()) else {
                continue;
            };
            let same = |other: &&&Row| {
                other.method == MethodName::Dense
                    && (other.shape, other.dtype) == (row.shape, row.dtype)
            };
            let Some(dense) = rows.iter().find(same).and_then(|row| row.median_us()) else {
                continue;
            };
            pairs += 1;
            let step = row.shape.step(row.dtype);
            let taken = match costs.sparq_pays(&step, row.shape.seq_len, config) {
                true => sparq,
                false => dense,
            };
            let quickest = sparq.min(dense);
            if taken > quickest {
                wrong += 1;
                loss = loss.max(taken / quickest - 1.0);
            }
        }
    }
    (pairs, (wrong, loss))
}

fn table(rows: &[&Row], costs: &StepCosts) -> Table {
    let mut table = Table::new([
        "method",
        "shape",
        "cache",
        "measured us",
        "model us",
        "error",
        "pays from S",
    ]);
    for row in rows {
        let step = row.shape.step(row.dtype);
        let model = match &row.settings {
            None => costs.dense_us(&step, row.shape.seq_len),
            Some(config) => costs.sparq_us(&step, row.shape.seq_len, config),
        };
        let us = row.median_us();
        let from = row.settings.map(|config| {
            let at = costs.break_even(&step, &config);
            at.map_or("never".into(), |at| at.to_string())
        });
        table.row([
            row.label(),
            row.shape.to_string(),
            row.dtype.name().into(),
            or_dash(us),
            digits(model),
            us.map_or("-".into(), |us| percent(model / us - 1.0)),
            from.unwrap_or("-".into()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points of a model with known figures, each off by up to `noise`.
    fn points(unknowns: [f64; UNKNOWNS], noise: f64) -> Vec<Point> {
        let mut points = Vec::new();
        for (index, s) in [4096.0, 16384.0, 65536.0, 131072.0].into_iter().enumerate() {
            for (heads, kv_heads) in [(32.0, 32.0), (32.0, 8.0), (2048.0, 512.0)] {
                let dense = kv_heads * s * 0.512;
                for factors in [
                    [1.0, 0.0, dense, 0.0],
                    [0.0, 1.0, dense / 8.0, s * heads],
                    [0.0, 1.0, dense / 32.0, s * heads],
                ] {
                    let mut point = Point { factors, us: 1.0 };
                    let sign = if index % 2 == 0 { 1.0 } else { -1.0 };
                    point.us = predicted(&point, &unknowns) * (1.0 + sign * noise);
                    points.push(point);
                }
            }
        }
        points
    }

    #[test]
    fn a_model_is_found_again_from_its_times() {
        for unknowns in [[5.0, 14.0, 1.0 / 3000.0, 1e-6], [20.0, 60.0, 0.04, 1e-3]] {
            let exact = solve(&points(unknowns, 0.0));
            for (found, known) in exact.iter().zip(unknowns) {
                assert!((found / known - 1.0).abs() < 1e-6, "{exact:?}");
            }
            // Noise moves the unknowns against each other more than it moves what they say of a step.
            let near = solve(&points(unknowns, 0.02));
            for point in points(unknowns, 0.0) {
                let error = predicted(&point, &near) / point.us - 1.0;
                assert!(error.abs() < 0.03, "{near:?} {error}");
            }
        }
    }

    #[test]
    fn nothing_takes_less_than_no_time() {
        // Times that fall with the number of scores would be met best by a negative one.
        let mut points = points([5.0, 14.0, 1.0 / 3000.0, 0.0], 0.0);
        for point in &mut points {
            if point.factors[3] > 0.0 {
                point.us *= 1.0 - 1e-9 * point.factors[3];
            }
        }
        let found = solve(&points);
        assert_eq!(found[3], 0.0);
        assert!(found.iter().all(|&unknown| unknown >= 0.0) && found[2] > 0.0);
    }
}
