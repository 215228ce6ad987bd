//! [`Figure`], heat maps of needles, and differences of SparQ variants to dense attention.

use sparq_output::charts::{Cell, Chart, ChartError, Dot, DotPlot, HeatMap, Layout, PositionPlot};
use sparq_output::numbers;

use super::palette::Palette;
use super::{distinct, format, interval};
use crate::{Estimate, Record, SummaryRow, TaskName};

/// A figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The file name without `.svg`.
    pub name: String,
    /// The title.
    pub title: String,
    /// The caption.
    pub caption: String,
    /// The picture.
    pub picture: Picture,
}

/// The picture of a figure.
#[derive(Clone, Debug)]
pub enum Picture {
    /// Lines.
    Lines(Chart),
    /// A grid of cells.
    Heat(HeatMap),
    /// Named values as dots.
    Dots(DotPlot),
    /// Values over positions.
    Positions(PositionPlot),
}

impl Picture {
    /// Draws the picture as SVG.
    ///
    /// # Errors
    /// If there is nothing to draw.
    pub fn svg(&self, layout: Layout) -> Result<String, ChartError> {
        match self {
            Picture::Lines(chart) => chart.svg(layout),
            Picture::Heat(map) => map.svg(layout),
            Picture::Dots(plot) => plot.svg(layout),
            Picture::Positions(plot) => plot.svg(layout),
        }
    }

    /// Returns whether several such pictures fit beside each other.
    pub fn is_small(&self) -> bool {
        matches!(self, Picture::Heat(_))
    }
}

/// Replaces the characters of a text that do not belong in a file name.
pub fn file_name(text: &str) -> String {
    let plain = |c: char| match c.is_ascii_alphanumeric() || c == '-' || c == '_' {
        true => c,
        false => '-',
    };
    text.chars().map(plain).collect()
}

/// Makes a heat map over depth and context for each method at each budget.
pub fn needles(name: &str, records: &[Record]) -> Vec<Figure> {
    let depth = |record: &Record| record.detail.get("depth").and_then(|depth| depth.as_f64());
    let known: Vec<(&Record, f64, usize)> = records
        .iter()
        .filter_map(|record| Some((record, depth(record)?, record.context?)))
        .collect();
    let mut depths: Vec<f64> = distinct(known.iter().map(|(_, depth, _)| *depth)).collect();
    depths.sort_by(f64::total_cmp);
    let mut contexts: Vec<usize> = distinct(known.iter().map(|(.., context)| *context)).collect();
    contexts.sort_unstable();
    if depths.len() < 2 {
        return vec![];
    }
    let methods = known
        .iter()
        .map(|(record, ..)| (record.method.as_str(), record.budget));
    let mut methods: Vec<(&str, Option<f64>)> = distinct(methods).collect();
    // Dense attention first, then small budgets, where methods differ most.
    methods.sort_by(|a, b| a.1.unwrap_or(0.0).total_cmp(&b.1.unwrap_or(0.0)));
    let map = |(method, budget): &(&str, Option<f64>)| {
        let title = match budget {
            Some(budget) => format!("{method} at {}", format::budget(*budget)),
            None => (*method).to_owned(),
        };
        let mut cells = Vec::new();
        for (row, depth) in depths.iter().enumerate() {
            for (column, context) in contexts.iter().enumerate() {
                let here = known.iter().filter(|(record, at, length)| {
                    (record.method.as_str(), record.budget) == (method, *budget)
                        && at == depth
                        && length == context
                });
                let score = Estimate::of(here.map(|(record, ..)| record.score));
                cells.extend(score.map(|score| Cell {
                    column,
                    row,
                    value: score.mean,
                    label: format!("{:.2}", score.mean),
                }));
            }
        }
        Figure {
            name: format!("{name}-{}", file_name(&title)),
            title: title.clone(),
            caption: String::new(),
            picture: Picture::Heat(HeatMap {
                title: format!("Share of needles found: {title}"),
                x_label: "context, tokens".into(),
                y_label: "depth of the needle".into(),
                columns: contexts.iter().copied().map(numbers::positions).collect(),
                rows: depths
                    .iter()
                    .map(|depth| format!("{:.0}%", 100.0 * depth))
                    .collect(),
                cells,
            }),
        }
    };
    methods.iter().map(map).collect()
}

/// Plots the differences of SparQ variants to dense attention, at every budget with at least two
/// variants.
pub fn ablation(
    name: &str,
    model: &str,
    task: TaskName,
    all: &[SummaryRow],
    palette: &Palette,
) -> Option<Figure> {
    let variants = all
        .iter()
        .filter(|row| row.method.starts_with("sparq") && row.difference.is_some());
    let variants: Vec<&SummaryRow> = variants.collect();
    let mut budgets: Vec<f64> = distinct(variants.iter().filter_map(|row| row.budget)).collect();
    budgets.sort_by(f64::total_cmp);
    let mut dots = Vec::new();
    for budget in budgets.into_iter().rev() {
        let rows = variants.iter().filter(|row| row.budget == Some(budget));
        if rows.clone().count() < 2 {
            continue;
        }
        for row in rows {
            let Some(difference) = row.difference else {
                continue;
            };
            let (paint, marker) = palette.style(&row.method);
            dots.push(Dot {
                label: format!("{} at {}", row.method, format::budget(budget)),
                value: difference.mean,
                interval: interval(&difference),
                note: format::estimate(&difference, row.metric, true),
                paint,
                marker,
            });
        }
    }
    if dots.is_empty() {
        return None;
    }
    let metric = task.metric();
    let title = format!("{}, {model}: the cost of each choice", task.title());
    Some(Figure {
        name: format!("{name}-ablation"),
        caption: "Mean difference to dense attention on the same examples, with 95% confidence \
                  intervals. Numbers are means ± standard errors. The dashed line is dense attention."
            .into(),
        picture: Picture::Dots(DotPlot {
            title: title.clone(),
            x_label: format::difference_axis(metric).into(),
            format: match format::digits(metric) {
                1 => |value| format!("{value:.0}"),
                _ => |value| format!("{value:.2}"),
            },
            reference: Some(0.0),
            dots,
        }),
        title,
    })
}
