//! The figures of the cost model, fitted to measured steps by least squares.
//!
//! The time of a step is a sum of four unknowns with known factors, see [`sparq::cost`]: the fixed
//! time of a dense step, the fixed time of a SparQ step, the time per byte and the time per score.
//! The fit minimises the sum of the squared relative errors, so that a step of 15 us counts as much
//! as one of 1400 us. No unknown may be negative: with so few unknowns, the fit tries every set of
//! those above 0.

use anyhow::{Result, bail};
use sparq::cost::StepCosts;

use crate::attention::{MethodName, Row, Run};

/// Unknowns: us per dense step, us per SparQ step, us per 10^3 bytes, us per score.
const UNKNOWNS: usize = 4;

/// A measured step with the factors of the unknowns.
#[derive(Clone, Copy, Debug)]
struct Point {
    factors: [f64; UNKNOWNS],
    us: f64,
}

/// Relative errors: predicted time divided by measured time, minus 1.
#[derive(Clone, Debug, Default)]
pub struct Errors(pub Vec<f64>);

impl Errors {
    /// The number of errors.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The mean of the absolute errors.
    pub fn mean(&self) -> f64 {
        self.0.iter().map(|error| error.abs()).sum::<f64>() / self.0.len().max(1) as f64
    }

    /// The largest absolute error.
    pub fn worst(&self) -> f64 {
        self.0.iter().map(|error| error.abs()).fold(0.0, f64::max)
    }
}

/// How often the cost model selects the slower method.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decisions {
    /// Pairs of a dense and a SparQ step on the same shape.
    pub pairs: usize,
    /// Pairs for which the model selects the slower step.
    pub wrong: usize,
    /// The largest loss of those, relative to the time of the faster step.
    pub worst_loss: f64,
}

/// The figures that describe the runs of one device best.
#[derive(Clone, Debug)]
pub struct Fit {
    /// The figures.
    pub costs: StepCosts,
    /// The relative errors of the fitted steps.
    pub errors: Errors,
    /// The decisions that follow from the figures.
    pub decisions: Decisions,
}

/// Fits runs of one device, whose name is for the error. If the device captures graphs, only
/// captured steps are fitted: that is how a model decodes.
///
/// # Errors
/// If too few steps were measured to determine the unknowns.
pub fn fit(runs: &[&Run], device: &str) -> Result<Fit> {
    let rows: Vec<&Row> = runs.iter().flat_map(|run| fitted(run)).collect();
    let costs = costs(&rows, device)?;
    Ok(Fit {
        costs,
        errors: errors(&rows, &costs),
        decisions: decisions(runs, &costs),
    })
}

/// The figures that describe these rows best.
///
/// # Errors
/// If the rows are too few to determine the unknowns.
pub fn costs(rows: &[&Row], device: &str) -> Result<StepCosts> {
    let points: Vec<Point> = rows.iter().filter_map(|row| point(row)).collect();
    let with = |factor: usize| {
        let has = |point: &&Point| point.factors[factor] > 0.0;
        points.iter().filter(has).count()
    };
    if with(0) < 2 || with(1) < 3 {
        bail!(
            "{device}: expected at least 2 dense steps and 3 SparQ steps with S above k, \
             found {} and {}",
            with(0),
            with(1)
        );
    }
    let [dense_us, sparq_us, kilobyte, score] = solve(&points);
    if kilobyte <= 0.0 {
        bail!("{device}: the measured times do not grow with the bytes; measure larger S");
    }
    Ok(StepCosts {
        dense_us,
        sparq_us,
        gb_per_s: 1.0 / kilobyte,
        // A fit of 0 us per score becomes a rate that adds nothing to the time.
        scores_per_us: match score > 0.0 {
            true => 1.0 / score,
            false => 1e9,
        },
    })
}

/// The relative errors of the model on the rows it describes.
pub fn errors(rows: &[&Row], costs: &StepCosts) -> Errors {
    let (byte, score) = (1.0 / costs.gb_per_s, 1.0 / costs.scores_per_us);
    let unknowns = [costs.dense_us, costs.sparq_us, byte, score];
    let points = rows.iter().filter_map(|row| point(row));
    let error = |point: Point| predicted(&point, &unknowns) / point.us - 1.0;
    Errors(points.map(error).collect())
}

/// The measured rows of this project's methods: the captured ones if the device captured any.
///
/// Without dense attention over codes of 8 bits, which is bound by instructions and not by bytes.
pub fn fitted(run: &Run) -> Vec<&Row> {
    let other = [
        MethodName::DenseBurn,
        MethodName::DenseInt8,
        MethodName::Given,
        MethodName::Sharing,
    ];
    let own = |row: &&Row| !other.contains(&row.method) && row.measured.is_some();
    let captured =
        |row: &Row| row.measured.and_then(|measured| measured.hardware_graph) == Some(true);
    let any = run.rows.iter().filter(own).any(captured);
    let rows = run.rows.iter().filter(own);
    rows.filter(|&row| captured(row) == any).collect()
}

fn point(row: &Row) -> Option<Point> {
    let (bytes, us) = (row.bytes / 1e3, row.median_us()?);
    let factors = match &row.settings {
        None => [1.0, 0.0, bytes, 0.0],
        // With S up to k, SparQ attends to every position: not a SparQ step of the model.
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

/// The unknowns, none negative, with the least sum of squared relative errors.
fn solve(points: &[Point]) -> [f64; UNKNOWNS] {
    let mut least = ([0.0; UNKNOWNS], f64::INFINITY);
    for set in 1..1_usize << UNKNOWNS {
        let free: Vec<usize> = (0..UNKNOWNS).filter(|at| (set >> at) & 1 == 1).collect();
        let Some(found) = solve_free(points, &free) else {
            continue;
        };
        let error: f64 = points
            .iter()
            .map(|point| (predicted(point, &found) / point.us - 1.0).powi(2))
            .sum();
        if found.iter().all(|&unknown| unknown >= 0.0) && error < least.1 {
            least = (found, error);
        }
    }
    least.0
}

/// The least squares solution over the `free` unknowns, the others 0, by the normal equations.
/// `None` if they are singular.
fn solve_free(points: &[Point], free: &[usize]) -> Option<[f64; UNKNOWNS]> {
    let n = free.len();
    // Factors differ by orders of magnitude: each is scaled by its maximum.
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

/// Compares the decisions of the cost model with the measured times, for every pair of a dense and
/// a SparQ step on one shape.
pub fn decisions(runs: &[&Run], costs: &StepCosts) -> Decisions {
    let mut found = Decisions::default();
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
            found.pairs += 1;
            let step = row.shape.step(row.dtype);
            let selected = match costs.sparq_pays(&step, row.shape.seq_len, config) {
                true => sparq,
                false => dense,
            };
            let fastest = sparq.min(dense);
            if selected > fastest {
                found.wrong += 1;
                found.worst_loss = found.worst_loss.max(selected / fastest - 1.0);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of a model with known figures, with relative errors of `noise`.
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
    fn fit_recovers_known_figures() {
        for unknowns in [[5.0, 14.0, 1.0 / 3000.0, 1e-6], [20.0, 60.0, 0.04, 1e-3]] {
            let exact = solve(&points(unknowns, 0.0));
            for (found, known) in exact.iter().zip(unknowns) {
                assert!((found / known - 1.0).abs() < 1e-6, "{exact:?}");
            }
            // Noise shifts the unknowns against each other more than it shifts the predictions.
            let near = solve(&points(unknowns, 0.02));
            for point in points(unknowns, 0.0) {
                let error = predicted(&point, &near) / point.us - 1.0;
                assert!(error.abs() < 0.03, "{near:?} {error}");
            }
        }
    }

    #[test]
    fn fit_has_no_negative_figure() {
        // Times that fall with the number of scores: an unbounded fit would give a negative time.
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
