//! What lies over positions, and which of them were chosen: [`PositionPlot`].

use plotters::prelude::*;

use super::sheet::{self, Anchor, Area, text};
use super::{ChartError, Layout, Paint};

/// The positions that one method chose.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The method.
    pub label: String,
    /// The chosen positions, in any order.
    pub positions: Vec<usize>,
    /// Its colour.
    pub paint: Paint,
}

/// Shares of a whole over positions as bars on a logarithmic axis, and below them a row of ticks for each choice.
///
/// More positions than pixels share bars, which then show the largest of them.
#[derive(Clone, Debug, PartialEq)]
pub struct PositionPlot {
    /// What it shows.
    pub title: String,
    /// What the bars show.
    pub y_label: String,
    /// The share of each position.
    pub mass: Vec<f64>,
    /// The choices.
    pub rows: Vec<Row>,
}

/// Shares below this are not drawn.
const LEAST: f64 = 1e-5;

/// The height of the bars, and of a row, in pixels.
const BARS: i32 = 190;
const ROW: i32 = 40;

impl PositionPlot {
    /// The picture.
    ///
    /// # Errors
    /// When there is no position, a share is no number, or a choice is beyond the positions.
    pub fn svg(&self, layout: Layout) -> Result<String, ChartError> {
        if self.mass.is_empty() || self.mass.iter().any(|share| !share.is_finite()) {
            let why = "expected at least one position, and numbers only";
            return Err(ChartError::new(&self.title, why));
        }
        let positions = || self.rows.iter().flat_map(|row| &row.positions);
        if let Some(beyond) = positions().find(|&&at| at >= self.mass.len()) {
            let why = format!("position {beyond} of {}", self.mass.len());
            return Err(ChartError::new(&self.title, why));
        }
        let top = if layout.is_titled() { 60 } else { 26 };
        let size = (
            layout.width(),
            top + BARS + ROW * self.rows.len() as i32 + 54,
        );
        sheet::draw(&self.title, size, |area| self.draw(area, layout, top))
    }

    fn draw(
        &self,
        area: &Area<'_>,
        layout: Layout,
        top: i32,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let (left, right) = (58, layout.width() - 14);
        let (len, wide) = (self.mass.len(), (right - left) as usize);
        let column = |at: usize| at * wide / len;
        let width = (wide / len).max(1) as i32;
        if layout.is_titled() {
            text(area, &self.title, (14, 22), 16, Anchor::Start, BLACK)?;
        }

        let base = top + BARS;
        let decades = -LEAST.log10();
        let height = |share: f64| match share > LEAST {
            true => ((1.0 + share.log10() / decades) * f64::from(BARS)) as i32,
            false => 0,
        };
        for decade in 0..=decades as i32 {
            let y = base - height(10_f64.powi(-decade).max(LEAST * 1.0001));
            area.draw(&PathElement::new([(left, y), (right, y)], BLACK.mix(0.12)))?;
            text(
                area,
                &percent(decade),
                (left - 6, y),
                11,
                Anchor::End,
                BLACK,
            )?;
        }
        let mut bars = vec![0.0_f64; wide];
        for (at, &share) in self.mass.iter().enumerate() {
            let bar = &mut bars[column(at)];
            *bar = bar.max(share);
        }
        for (x, share) in bars.iter().enumerate().filter(|(_, share)| **share > LEAST) {
            let x = left + x as i32;
            area.draw(&Rectangle::new(
                [(x, base - height(*share)), (x + width, base)],
                BLACK.mix(0.75).filled(),
            ))?;
        }
        area.draw(&PathElement::new([(left, base), (right, base)], BLACK))?;
        text(
            area,
            &self.y_label,
            (left, top - 12),
            12,
            Anchor::Start,
            BLACK,
        )?;

        for (index, row) in self.rows.iter().enumerate() {
            let y = base + ROW * index as i32;
            text(area, &row.label, (left, y + 12), 12, Anchor::Start, BLACK)?;
            let mut taken = vec![false; wide];
            for &at in &row.positions {
                taken[column(at)] = true;
            }
            let color = row.paint.rgb();
            // Runs of neighbours are one mark.
            let mut x = 0;
            while x < wide {
                let run = taken[x..].iter().take_while(|&&taken| taken).count();
                if run > 0 {
                    let (from, to) = (left + x as i32, left + (x + run - 1) as i32 + width);
                    area.draw(&Rectangle::new(
                        [(from, y + 21), (to, y + 36)],
                        color.filled(),
                    ))?;
                }
                x += run.max(1);
            }
        }
        let bottom = base + ROW * self.rows.len() as i32;
        let marks = if layout == Layout::Narrow { 4 } else { 8 };
        for mark in 0..=marks {
            let at = (mark * len / marks).min(len - 1);
            let x = left + column(at) as i32;
            area.draw(&PathElement::new([(x, bottom), (x, bottom + 4)], BLACK))?;
            text(
                area,
                &at.to_string(),
                (x, bottom + 14),
                11,
                Anchor::Middle,
                BLACK,
            )?;
        }
        area.draw(&PathElement::new([(left, bottom), (right, bottom)], BLACK))?;
        let middle = ((left + right) / 2, bottom + 36);
        text(
            area,
            "position, tokens from the beginning",
            middle,
            13,
            Anchor::Middle,
            BLACK,
        )
    }
}

/// 10^-n as percent.
fn percent(n: i32) -> String {
    match n {
        0..=2 => format!("{}%", 100 / 10_i32.pow(n as u32)),
        _ => format!("{:.*}%", (n - 2) as usize, 100.0 * 10_f64.powi(-n)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(positions: Vec<usize>) -> PositionPlot {
        PositionPlot {
            title: "attention".into(),
            y_label: "share".into(),
            mass: vec![0.5, 0.25, 0.25],
            rows: vec![Row {
                label: "SparQ".into(),
                positions,
                paint: Paint::Blue,
            }],
        }
    }

    #[test]
    fn few_and_many_positions_are_drawn() {
        for layout in [Layout::File, Layout::Wide, Layout::Narrow] {
            let svg = plot(vec![0, 2]).svg(layout).unwrap();
            // Two marks, since the position between is not taken.
            assert_eq!(svg.matches(&Paint::Blue.hex()).count(), 2, "{layout:?}");
        }
        let many = PositionPlot {
            mass: vec![1e-4; 10_000],
            ..plot((0..10_000).collect())
        };
        assert_eq!(
            many.svg(Layout::Wide)
                .unwrap()
                .matches(&Paint::Blue.hex())
                .count(),
            1
        );
    }

    #[test]
    fn a_position_that_is_not_there_is_refused() {
        let error = plot(vec![3]).svg(Layout::File).unwrap_err();
        assert_eq!(error.to_string(), "attention: position 3 of 3");
    }

    #[test]
    fn decades_are_written_as_percent() {
        let all: Vec<String> = (0..=5).map(percent).collect();
        assert_eq!(all, ["100%", "10%", "1%", "0.1%", "0.01%", "0.001%"]);
    }
}
