//! [`DotPlot`]: named values with error bars.

use plotters::prelude::*;

use super::sheet::{self, Anchor, Area, Drawn, text};
use super::{ChartError, Layout, Marker, Paint};

/// A named value.
#[derive(Clone, Debug, PartialEq)]
pub struct Dot {
    /// The name.
    pub label: String,
    /// The value.
    pub value: f64,
    /// The ends of the error bar.
    pub interval: Option<(f64, f64)>,
    /// The text to the right of the value.
    pub note: String,
    /// The colour.
    pub paint: Paint,
    /// The marker.
    pub marker: Marker,
}

/// Values below each other on one axis, with a dashed reference line.
#[derive(Clone, Debug)]
pub struct DotPlot {
    /// The title.
    pub title: String,
    /// The label of the axis.
    pub x_label: String,
    /// The format of numbers on the axis.
    pub format: fn(f64) -> String,
    /// The value of the reference line.
    pub reference: Option<f64>,
    /// The values from top to bottom.
    pub dots: Vec<Dot>,
}

/// The height of a value in pixels. In the narrow layout the name has a separate line.
const ROW: i32 = 26;
const NARROW_ROW: i32 = 44;

impl DotPlot {
    /// Draws the plot.
    ///
    /// # Errors
    /// If there are no values or one is not finite.
    pub fn svg(&self, layout: Layout) -> Result<String, ChartError> {
        let ends = |dot: &Dot| dot.interval.unwrap_or((dot.value, dot.value));
        let values = self.dots.iter().flat_map(|dot| {
            let (low, high) = ends(dot);
            [dot.value, low, high]
        });
        let values: Vec<f64> = values.chain(self.reference).collect();
        if self.dots.is_empty() || values.iter().any(|value| !value.is_finite()) {
            let why = "expected at least one value and only finite numbers";
            return Err(ChartError::new(&self.title, why));
        }
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // Equal values need an axis around them.
        let room = match high > low {
            true => 0.06 * (high - low),
            false => 0.5 * high.abs().max(1e-3),
        };
        let top = if layout.is_titled() { 46 } else { 14 };
        let row = match layout {
            Layout::Narrow => NARROW_ROW,
            Layout::File | Layout::Wide => ROW,
        };
        let size = (layout.width(), top + row * self.dots.len() as i32 + 62);
        sheet::draw(&self.title, size, |area| {
            self.draw(area, layout, (top, row), (low - room, high + room))
        })
    }

    fn draw(
        &self,
        area: &Area<'_>,
        layout: Layout,
        (top, row): (i32, i32),
        (low, high): (f64, f64),
    ) -> Drawn {
        let narrow = layout == Layout::Narrow;
        let (left, right) = match narrow {
            true => (20, layout.width() - 110),
            false => (380, layout.width() - 150),
        };
        let x = |value: f64| left + ((value - low) / (high - low) * f64::from(right - left)) as i32;
        let bottom = top + row * self.dots.len() as i32;
        if layout.is_titled() {
            text(area, &self.title, (14, 22), 16, Anchor::Start, BLACK)?;
        }
        for tick in ticks(low, high, if narrow { 3 } else { 6 }) {
            let at = x(tick);
            let line = [(at, top), (at, bottom)];
            area.draw(&PathElement::new(line, BLACK.mix(0.12)))?;
            let (label, place) = ((self.format)(tick), (at, bottom + 12));
            text(area, &label, place, 12, Anchor::Middle, BLACK)?;
        }
        area.draw(&PathElement::new([(left, bottom), (right, bottom)], BLACK))?;
        let below = ((left + right) / 2, bottom + 36);
        text(area, &self.x_label, below, 13, Anchor::Middle, BLACK)?;
        if let Some(reference) = self.reference {
            let at = x(reference);
            for y in (top..bottom).step_by(9) {
                let dash = [(at, y), (at, (y + 5).min(bottom))];
                area.draw(&PathElement::new(dash, Paint::Grey.rgb().stroke_width(2)))?;
            }
        }
        for (index, dot) in self.dots.iter().enumerate() {
            let color = dot.paint.rgb();
            let begin = top + row * index as i32;
            let (name, y) = match narrow {
                true => ((4, begin + 11), begin + 31),
                false => ((left - 12, begin + row / 2), begin + row / 2),
            };
            let anchor = if narrow { Anchor::Start } else { Anchor::End };
            text(area, &dot.label, name, 12, anchor, BLACK)?;
            if let Some((from, to)) = dot.interval {
                let style = color.stroke_width(2);
                area.draw(&PathElement::new([(x(from), y), (x(to), y)], style))?;
                for end in [x(from), x(to)] {
                    area.draw(&PathElement::new([(end, y - 4), (end, y + 4)], style))?;
                }
            }
            dot.marker.draw(area, (x(dot.value), y), 5, color)?;
            text(area, &dot.note, (right + 10, y), 12, Anchor::Start, BLACK)?;
        }
        Ok(())
    }
}

/// Returns round numbers between two numbers, about `most`.
fn ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    let rough = (high - low) / most as f64;
    let magnitude = 10_f64.powf(rough.log10().floor());
    let round = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude);
    let spacing = round.into_iter().find(|&spacing| spacing >= rough);
    let spacing = spacing.unwrap_or(round[3]);
    let first = (low / spacing).ceil() as i64;
    let last = (high / spacing).floor() as i64;
    (first..=last).map(|n| n as f64 * spacing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let near = |found: Vec<f64>, expected: &[f64]| {
            assert_eq!(found.len(), expected.len(), "{found:?}");
            let mut pairs = found.iter().zip(expected);
            assert!(pairs.all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        };
        near(ticks(0.0, 1.0, 6), &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        near(ticks(0.93, 1.01, 3), &[0.95, 1.0]);
        near(ticks(-30.0, 70.0, 3), &[0.0, 50.0]);
    }

    #[test]
    fn single_value_has_an_axis() {
        let plot = |value| DotPlot {
            title: "dots".into(),
            x_label: "score".into(),
            format: |value| format!("{value:.2}"),
            reference: None,
            dots: vec![Dot {
                label: "dense".into(),
                value,
                interval: None,
                note: String::new(),
                paint: Paint::Black,
                marker: Marker::Circle,
            }],
        };
        for layout in [Layout::File, Layout::Wide, Layout::Narrow] {
            assert!(plot(0.0).svg(layout).unwrap().contains("dense"));
        }
        assert!(plot(f64::NAN).svg(Layout::File).is_err());
    }
}
