//! Scores as lines: against the budget and against the context.

use sparq_output::charts::{Axis, Chart, Paint, Scale, Series};
use sparq_output::numbers;

use super::figures::{Figure, Picture};
use super::palette::Palette;
use super::{distinct, format, interval};
use crate::{Better, Metric, REFERENCE, SummaryRow, TaskName};

/// The paper's budget, for figures of one budget.
const BUDGET: f64 = 1.0 / 8.0;

/// Plots the score of each method over its budgets, with dense attention as a dashed line.
pub fn score_by_budget(
    name: &str,
    model: &str,
    task: TaskName,
    all: &[SummaryRow],
    palette: &Palette,
) -> Option<Figure> {
    let mut budgets: Vec<f64> = distinct(all.iter().filter_map(|row| row.budget)).collect();
    budgets.sort_by(f64::total_cmp);
    let (first, last) = budgets.first().zip(budgets.last())?;
    let mut series = Vec::new();
    if let Some(dense) = all.iter().find(|row| row.method == REFERENCE) {
        let mut line = Series::dashed(REFERENCE, Paint::Black);
        line.points = [first, last].map(|&x| (x, dense.score.mean)).into();
        series.push(line);
    }
    let others = all.iter().filter(|row| row.method != REFERENCE);
    for method in distinct(others.map(|row| row.method.as_str())) {
        let mut rows: Vec<&SummaryRow> = all.iter().filter(|row| row.method == method).collect();
        // Given settings have no budget, but move a share too.
        let share = |row: &SummaryRow| row.budget.unwrap_or(row.transfer);
        rows.sort_by(|a, b| share(a).total_cmp(&share(b)));
        let points = rows.into_iter().map(|row| (share(row), row));
        series.push(line(method, palette, points));
    }
    Some(Figure {
        name: format!("{name}-budget"),
        title: format!("{}, {model}: score against budget", task.title()),
        caption: caption(all, "Bars are 95% confidence intervals. "),
        picture: Picture::Lines(Chart {
            title: format!("{}, {model}", task.title()),
            x: Axis {
                label: "budget, share of dense attention's bytes",
                format: format::budget,
            },
            y: axis(task.metric()),
            y_scale: scale(task.metric(), &series),
            ticks: Some(budgets),
            series,
        }),
    })
}

/// Plots the score of each method over the contexts, at the budget nearest to the paper's.
pub fn score_by_context(
    name: &str,
    model: &str,
    task: TaskName,
    rows: &[SummaryRow],
    palette: &Palette,
) -> Option<Figure> {
    let contexts = distinct(rows.iter().filter_map(|row| row.context)).count();
    let far = |budget: &f64| (budget / BUDGET).ln().abs();
    let budgets = rows.iter().filter_map(|row| row.budget);
    let budget = budgets.min_by(|a, b| far(a).total_cmp(&far(b)))?;
    if contexts < 2 {
        return None;
    }
    let shown = |row: &&SummaryRow| row.budget.is_none_or(|other| other == budget);
    let mut series = Vec::new();
    for method in distinct(rows.iter().filter(shown).map(|row| row.method.as_str())) {
        let of_method = rows.iter().filter(shown).filter(|row| row.method == method);
        let mut points: Vec<_> = of_method
            .filter_map(|row| Some((row.context? as f64, row)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        series.push(line(method, palette, points));
    }
    Some(Figure {
        name: format!("{name}-context"),
        title: format!(
            "{}, {model}: score against context, at {}",
            task.title(),
            format::budget(budget)
        ),
        caption: caption(rows, "Bars are 95% confidence intervals. "),
        picture: Picture::Lines(Chart {
            title: format!("{}, {model}, at {}", task.title(), format::budget(budget)),
            x: Axis {
                label: "context, tokens",
                format: |tokens| numbers::positions(tokens as usize),
            },
            y: axis(task.metric()),
            y_scale: scale(task.metric(), &series),
            ticks: None,
            series,
        }),
    })
}

fn line<'a>(
    method: &str,
    palette: &Palette,
    points: impl IntoIterator<Item = (f64, &'a SummaryRow)>,
) -> Series {
    let (paint, marker) = palette.style(method);
    let mut series = Series::new(method, paint).with_marker(marker);
    for (x, row) in points {
        series.points.push((x, row.score.mean));
        if let Some((low, high)) = interval(&row.score) {
            series.bars.push((x, low, high));
        }
    }
    series
}

fn axis(metric: Metric) -> Axis {
    Axis {
        label: format::axis(metric),
        format: match metric {
            Metric::Characters => |value| format!("{value:.0}"),
            _ => |value| format!("{value:.2}"),
        },
    }
}

/// Chooses the range of the y axis: from 0 for most metrics, and only the range of the points for
/// bits, which are never near 0.
fn scale(metric: Metric, series: &[Series]) -> Scale {
    let points = series.iter().flat_map(|line| {
        let bars = line.bars.iter().flat_map(|&(_, low, high)| [low, high]);
        line.points.iter().map(|point| point.1).chain(bars)
    });
    let low = points.clone().fold(f64::INFINITY, f64::min);
    let high = points.fold(f64::NEG_INFINITY, f64::max);
    match metric {
        Metric::BitsPerCharacter if high > low => {
            let room = 0.1 * (high - low);
            Scale::Between(low - room, high + room)
        }
        Metric::Characters | Metric::RougeL => Scale::Between(0.0, (1.1 * high).max(1e-3)),
        Metric::BitsPerCharacter => Scale::FromZero,
        _ => Scale::Between(0.0, 1.05),
    }
}

fn caption(rows: &[SummaryRow], more: &str) -> String {
    let better = match rows.first().map(|row| row.better) {
        Some(Better::Lower) => "Less is better.",
        _ => "More is better.",
    };
    format!("{more}{better}")
}
