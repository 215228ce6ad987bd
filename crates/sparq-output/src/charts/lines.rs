//! [`Chart`]: lines over a logarithmic axis.

use std::ops::Range;

use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::sheet::{self, Area, Drawn, LEGEND, Sample, legend_entry, legend_lines};
use super::{ChartError, Layout, Marker, Paint};

/// A line of a chart.
#[derive(Clone, Debug)]
pub struct Series {
    /// The name in the legend.
    pub label: String,
    /// The points from left to right.
    pub points: Vec<(f64, f64)>,
    /// The error bars: x and both ends in y.
    pub bars: Vec<(f64, f64, f64)>,
    /// The marker of the points. If all lines have discs, the legend shows no markers.
    pub marker: Marker,
    color: RGBColor,
    stroke: Stroke,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stroke {
    Solid,
    /// Solid without markers.
    Bare,
    Dashed,
    None,
}

impl Series {
    /// Creates a solid line with a marker at each point.
    pub fn new(label: &str, color: Paint) -> Self {
        Self {
            label: label.to_owned(),
            points: vec![],
            bars: vec![],
            marker: Marker::Circle,
            color: color.rgb(),
            stroke: Stroke::Solid,
        }
    }

    /// Creates a dashed line without markers.
    pub fn dashed(label: &str, color: Paint) -> Self {
        Self {
            stroke: Stroke::Dashed,
            ..Self::new(label, color)
        }
    }

    /// Creates a solid line without markers.
    pub fn bare(label: &str, color: Paint) -> Self {
        Self {
            stroke: Stroke::Bare,
            ..Self::new(label, color)
        }
    }

    /// Creates markers without a line.
    pub fn scattered(label: &str, color: Paint, marker: Marker) -> Self {
        Self {
            stroke: Stroke::None,
            marker,
            ..Self::new(label, color)
        }
    }

    /// Replaces the marker.
    pub fn with_marker(self, marker: Marker) -> Self {
        Self { marker, ..self }
    }
}

/// An axis.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// The label.
    pub label: &'static str,
    /// The format of numbers.
    pub format: fn(f64) -> String,
}

/// The scale of the y axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Logarithmic over the range of the points.
    Log,
    /// Linear from 0 to the largest point.
    FromZero,
    /// Linear between these ends.
    Between(f64, f64),
}

/// A chart with a logarithmic x axis.
///
/// ```
/// use sparq_output::charts::{Axis, Chart, Layout, Paint, Scale, Series};
///
/// let number = |n: f64| n.to_string();
/// let mut line = Series::new("dense", Paint::Black);
/// line.points = vec![(1.0, 10.0), (8.0, 20.0)];
/// let chart = Chart {
///     title: "Time".into(),
///     x: Axis { label: "S", format: number },
///     y: Axis { label: "us", format: number },
///     y_scale: Scale::FromZero,
///     ticks: None,
///     series: vec![line],
/// };
/// assert!(chart.svg(Layout::File)?.starts_with("<svg"));
/// # Ok::<(), sparq_output::charts::ChartError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Chart {
    /// The title.
    pub title: String,
    /// The x axis.
    pub x: Axis,
    /// The y axis.
    pub y: Axis,
    /// The scale of the y axis.
    pub y_scale: Scale,
    /// The labels of the x axis. `None` for one at each point.
    pub ticks: Option<Vec<f64>>,
    /// The lines.
    pub series: Vec<Series>,
}

impl Chart {
    /// Draws the chart.
    ///
    /// # Errors
    /// If there are no points or one is not finite.
    pub fn svg(&self, layout: Layout) -> Result<String, ChartError> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        if points().any(|(x, y)| !(x.is_finite() && y.is_finite())) {
            return Err(ChartError::new(&self.title, "expected finite points"));
        }
        let heights = points().map(|point| point.1);
        let largest = heights.clone().fold(f64::MIN_POSITIVE, f64::max);
        match self.y_scale {
            Scale::Log => {
                let least = heights.fold(largest, f64::min);
                self.draw(layout, ((least / 1.3)..(largest * 1.3)).log_scale())
            }
            Scale::FromZero => self.draw(layout, 0.0..(largest * 1.15)),
            Scale::Between(low, high) => self.draw(layout, low..high),
        }
    }

    fn draw<Y>(&self, layout: Layout, y: Y) -> Result<String, ChartError>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let points = self.series.iter().flat_map(|series| &series.points);
        let mut x: Vec<f64> = points.map(|point| point.0).collect();
        x.sort_by(f64::total_cmp);
        x.dedup();
        let (&first, &last) = x.first().zip(x.last()).ok_or_else(|| {
            ChartError::new(&self.title, "expected at least one point, found none")
        })?;
        let ticks = self.ticks.clone().unwrap_or(x);
        let size = (layout.width(), layout.height(self.legend_lines(layout)));
        sheet::draw(&self.title, size, |area| {
            self.draw_on(area, layout, (first / 1.1)..(last * 1.1), ticks, y)
        })
    }

    fn draw_on<Y>(
        &self,
        area: &Area<'_>,
        layout: Layout,
        range: Range<f64>,
        ticks: Vec<f64>,
        y: Y,
    ) -> Drawn
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let (count, lines) = (ticks.len(), self.legend_lines(layout));
        let mut builder = ChartBuilder::on(area);
        if layout.is_titled() {
            builder.caption(&self.title, ("sans-serif", 18));
        }
        builder.margin(14);
        match layout {
            Layout::File | Layout::Wide => builder.margin_right(LEGEND),
            Layout::Narrow => {
                builder.margin_bottom(layout.height(lines) - layout.legend(lines).1 + 12)
            }
        };
        let mut chart = builder
            .x_label_area_size(48)
            .y_label_area_size(if layout == Layout::Narrow { 56 } else { 70 })
            .build_cartesian_2d(range.log_scale().with_key_points(ticks), y)?;
        chart
            .configure_mesh()
            .x_labels(count)
            .x_desc(self.x.label)
            .y_desc(self.y.label)
            .x_label_formatter(&|x| (self.x.format)(*x))
            .y_label_formatter(&|y| (self.y.format)(*y))
            .axis_desc_style(("sans-serif", 15))
            .label_style(("sans-serif", 13))
            .max_light_lines(if self.y_scale == Scale::Log { 9 } else { 0 })
            .light_line_style(BLACK.mix(0.05))
            .draw()?;
        for series in &self.series {
            let color = series.color;
            let points = series.points.iter().copied();
            for &(x, low, high) in &series.bars {
                let style = color.stroke_width(1);
                let [low, high] = [low, high].map(|y| chart.backend_coord(&(x, y)));
                area.draw(&PathElement::new([low, high], style))?;
                for (x, y) in [low, high] {
                    area.draw(&PathElement::new([(x - 4, y), (x + 4, y)], style))?;
                }
            }
            if series.stroke == Stroke::Dashed {
                chart.draw_series(DashedLineSeries::new(points, 6, 5, color.stroke_width(1)))?;
                continue;
            }
            if series.stroke != Stroke::None {
                chart.draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?;
            }
            if series.stroke == Stroke::Bare {
                continue;
            }
            // Markers with corners are larger, to keep the corners visible.
            let radius = match series.marker {
                Marker::Circle => 3,
                _ => 4,
            };
            for point in points {
                let place = chart.backend_coord(&point);
                series.marker.draw(area, place, radius, color)?;
            }
        }
        // The legend stands beside the lines, where it hides none.
        let marked = self.series.iter().any(|line| line.marker != Marker::Circle);
        let mut line = 0;
        for series in &self.series {
            let sample = series.sample(marked);
            line = legend_entry(area, layout, lines, line, &series.label, sample)?;
        }
        Ok(())
    }

    fn legend_lines(&self, layout: Layout) -> usize {
        let names = self.series.iter().map(|series| series.label.as_str());
        legend_lines(names, layout)
    }
}

impl Series {
    /// Returns the sample for the legend, with its marker if the lines have different ones.
    fn sample(&self, marked: bool) -> Sample {
        let (dashes, width, marks): (&[(i32, i32)], u32, bool) = match self.stroke {
            Stroke::Solid => (&[(0, 24)], 2, true),
            Stroke::Bare => (&[(0, 24)], 2, false),
            Stroke::Dashed => (&[(0, 10), (14, 24)], 1, false),
            Stroke::None => (&[], 2, true),
        };
        Sample {
            color: self.color,
            mark: (marked && marks).then_some(self.marker),
            dashes,
            width,
        }
    }
}
