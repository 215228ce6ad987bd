//! [`PositionPlot`]: shares over positions, and the positions selected by methods.

use plotters::prelude::*;

use super::sheet::{self, Anchor, Area, Drawn, text};
use super::{ChartError, Layout, Paint};

/// The positions that a method selects.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The method.
    pub label: String,
    /// The selected positions in any order.
    pub positions: Vec<usize>,
    /// The colour.
    pub paint: Paint,
}

/// Shares over positions as bars on a logarithmic axis, and below them a row of marks for each
/// method.
///
/// If there are more positions than pixels, a bar shows the largest of its positions.
#[derive(Clone, Debug, PartialEq)]
pub struct PositionPlot {
    /// The title.
    pub title: String,
    /// The label of the bars.
    pub y_label: String,
    /// The share of each position.
    pub mass: Vec<f64>,
    /// The selections.
    pub rows: Vec<Row>,
}

/// The least share drawn.
const LEAST: f64 = 1e-5;

/// The heights of the bars and of a row, in pixels.
const BARS: i32 = 190;
const ROW: i32 = 40;

impl PositionPlot {
    /// Draws the plot.
    ///
    /// # Errors
    /// If there are no positions, a share is not finite, or a selection is beyond the positions.
    pub fn svg(&self, layout: Layout) -> Result<String, ChartError> {
        if self.mass.is_empty() || self.mass.iter().any(|share| !share.is_finite()) {
            let why = "expected at least one position and only finite numbers";
            return Err(ChartError::new(&self.title, why));
        }
        let positions = || self.rows.iter().flat_map(|row| &row.positions);
        if let Some(beyond) = positions().find(|&&at| at >= self.mass.len()) {
            let count = self.mass.len();
            let why = format!("expected positions below {count}, found {beyond}");
            return Err(ChartError::new(&self.title, why));
        }
        let top = if layout.is_titled() { 60 } else { 26 };
        let size = (
            layout.width(),
            top + BARS + ROW * self.rows.len() as i32 + 54,
        );
        sheet::draw(&self.title, size, |area| self.draw(area, layout, top))
    }

    fn draw(&self, area: &Area<'_>, layout: Layout, top: i32) -> Drawn {
        let frame = Frame {
            left: 58,
            right: layout.width() - 14,
            len: self.mass.len(),
        };
        if layout.is_titled() {
            text(area, &self.title, (14, 22), 16, Anchor::Start, BLACK)?;
        }
        let base = top + BARS;
        self.draw_bars(area, &frame, base)?;
        let label = (frame.left, top - 12);
        text(area, &self.y_label, label, 12, Anchor::Start, BLACK)?;
        for (index, row) in self.rows.iter().enumerate() {
            row.draw(area, &frame, base + ROW * index as i32)?;
        }
        let marks = if layout == Layout::Narrow { 4 } else { 8 };
        frame.draw_axis(area, base + ROW * self.rows.len() as i32, marks)
    }

    /// Draws the bars on the line `base`, and the logarithmic grid behind them.
    fn draw_bars(&self, area: &Area<'_>, frame: &Frame, base: i32) -> Drawn {
        let (left, right) = (frame.left, frame.right);
        let decades = -LEAST.log10();
        let height = |share: f64| match share > LEAST {
            true => ((1.0 + share.log10() / decades) * f64::from(BARS)) as i32,
            false => 0,
        };
        for decade in 0..=decades as i32 {
            let y = base - height(10_f64.powi(-decade).max(LEAST * 1.0001));
            area.draw(&PathElement::new([(left, y), (right, y)], BLACK.mix(0.12)))?;
            let label = percent(decade);
            text(area, &label, (left - 6, y), 11, Anchor::End, BLACK)?;
        }
        let mut bars = vec![0.0_f64; frame.width()];
        for (at, &share) in self.mass.iter().enumerate() {
            let bar = &mut bars[frame.column(at)];
            *bar = bar.max(share);
        }
        for (x, share) in bars.iter().enumerate().filter(|(_, share)| **share > LEAST) {
            let x = left + x as i32;
            area.draw(&Rectangle::new(
                [(x, base - height(*share)), (x + frame.bar(), base)],
                BLACK.mix(0.75).filled(),
            ))?;
        }
        area.draw(&PathElement::new([(left, base), (right, base)], BLACK))?;
        Ok(())
    }
}

impl Row {
    /// Draws the label and the positions below the line `y`.
    fn draw(&self, area: &Area<'_>, frame: &Frame, y: i32) -> Drawn {
        let (left, color) = (frame.left, self.paint.rgb());
        text(area, &self.label, (left, y + 12), 12, Anchor::Start, BLACK)?;
        let mut taken = vec![false; frame.width()];
        for &at in &self.positions {
            taken[frame.column(at)] = true;
        }
        // A run of neighbours is one mark.
        let mut x = 0;
        while x < taken.len() {
            let run = taken[x..].iter().take_while(|&&taken| taken).count();
            if run > 0 {
                let (from, to) = (left + x as i32, left + (x + run - 1) as i32 + frame.bar());
                let corners = [(from, y + 21), (to, y + 36)];
                area.draw(&Rectangle::new(corners, color.filled()))?;
            }
            x += run.max(1);
        }
        Ok(())
    }
}

/// The horizontal place of positions, in pixels.
struct Frame {
    left: i32,
    right: i32,
    /// The number of positions.
    len: usize,
}

impl Frame {
    fn width(&self) -> usize {
        (self.right - self.left) as usize
    }

    /// Returns the column of pixels of a position.
    fn column(&self, at: usize) -> usize {
        at * self.width() / self.len
    }

    /// Returns the width of a position's bar.
    fn bar(&self) -> i32 {
        (self.width() / self.len).max(1) as i32
    }

    /// Draws the axis of positions below everything else.
    fn draw_axis(&self, area: &Area<'_>, bottom: i32, marks: usize) -> Drawn {
        let (left, right) = (self.left, self.right);
        for mark in 0..=marks {
            let at = (mark * self.len / marks).min(self.len - 1);
            let x = left + self.column(at) as i32;
            area.draw(&PathElement::new([(x, bottom), (x, bottom + 4)], BLACK))?;
            let label = at.to_string();
            text(area, &label, (x, bottom + 14), 11, Anchor::Middle, BLACK)?;
        }
        area.draw(&PathElement::new([(left, bottom), (right, bottom)], BLACK))?;
        let label = "position, tokens from the beginning";
        let middle = ((left + right) / 2, bottom + 36);
        text(area, label, middle, 13, Anchor::Middle, BLACK)
    }
}

/// Formats 10^-n as a percentage.
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
    fn neighbours_share_a_mark() {
        for layout in [Layout::File, Layout::Wide, Layout::Narrow] {
            let svg = plot(vec![0, 2]).svg(layout).unwrap();
            // Two marks, because the position between is not selected.
            assert_eq!(svg.matches(&Paint::Blue.hex()).count(), 2, "{layout:?}");
        }
        let many = PositionPlot {
            mass: vec![1e-4; 10_000],
            ..plot((0..10_000).collect())
        };
        let svg = many.svg(Layout::Wide).unwrap();
        assert_eq!(svg.matches(&Paint::Blue.hex()).count(), 1);
    }

    #[test]
    fn positions_outside_are_refused() {
        let error = plot(vec![3]).svg(Layout::File).unwrap_err().to_string();
        assert_eq!(error, "attention: expected positions below 3, found 3");
    }

    #[test]
    fn decades_are_percentages() {
        let all: Vec<String> = (0..=5).map(percent).collect();
        assert_eq!(all, ["100%", "10%", "1%", "0.1%", "0.01%", "0.001%"]);
    }
}
