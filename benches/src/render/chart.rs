//! A line chart as SVG, the same bytes for the same data: no fonts of the system are asked.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

/// A line of a chart.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub label: String,
    /// Points from left to right.
    pub points: Vec<(f64, f64)>,
    color: RGBColor,
    dashed: bool,
}

impl Series {
    /// A solid line with a mark at each point.
    pub fn new(label: &str, color: Paint) -> Self {
        Self {
            label: label.to_owned(),
            points: vec![],
            color: color.rgb(),
            dashed: false,
        }
    }

    /// A dashed line without marks.
    pub fn dashed(label: &str, color: Paint) -> Self {
        Self {
            dashed: true,
            ..Self::new(label, color)
        }
    }
}

/// Colours that are told apart with any kind of colour vision (Okabe and Ito).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    Black,
    Grey,
    Vermilion,
    Orange,
    Blue,
    Sky,
    Green,
    Purple,
}

impl Paint {
    fn rgb(self) -> RGBColor {
        match self {
            Paint::Black => RGBColor(0, 0, 0),
            Paint::Grey => RGBColor(128, 128, 128),
            Paint::Vermilion => RGBColor(213, 94, 0),
            Paint::Orange => RGBColor(230, 159, 0),
            Paint::Blue => RGBColor(0, 114, 178),
            Paint::Sky => RGBColor(86, 180, 233),
            Paint::Green => RGBColor(0, 158, 115),
            Paint::Purple => RGBColor(204, 121, 167),
        }
    }
}

/// Pixels of the picture, and of the part to the right that the legend takes.
const WIDTH: i32 = 960;
const LEGEND: i32 = 220;

/// An axis.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// What it shows.
    pub label: &'static str,
    /// How its numbers are written.
    pub format: fn(f64) -> String,
}

/// A chart with a logarithmic x axis.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// The x axis, with a label at each point.
    pub x: Axis,
    /// The y axis.
    pub y: Axis,
    /// Whether the y axis is logarithmic; otherwise it begins at 0.
    pub log_y: bool,
    /// The lines.
    pub series: Vec<Series>,
}

impl Chart {
    /// The picture.
    ///
    /// # Errors
    /// When it can't be drawn.
    pub fn svg(&self) -> Result<String> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let largest = points()
            .map(|point| point.1)
            .fold(f64::MIN_POSITIVE, f64::max);
        if self.log_y {
            let least = points().map(|point| point.1).fold(largest, f64::min);
            self.draw(((least / 1.3)..(largest * 1.3)).log_scale())
        } else {
            self.draw(0.0..(largest * 1.15))
        }
    }

    fn draw<Y>(&self, y: Y) -> Result<String>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let mut x: Vec<f64> = self
            .series
            .iter()
            .flat_map(|series| series.points.iter().map(|point| point.0))
            .collect();
        x.sort_by(f64::total_cmp);
        x.dedup();
        let (&first, &last) = x
            .first()
            .zip(x.last())
            .ok_or_else(|| anyhow!("{}: a chart needs at least one point", self.title))?;
        let mut svg = String::new();
        self.draw_into(&mut svg, (first / 1.1)..(last * 1.1), x, y)
            .map_err(|error| anyhow!("{}: {error}", self.title))?;
        // A file ends with a line.
        if !svg.ends_with('\n') {
            svg.push('\n');
        }
        Ok(svg)
    }

    fn draw_into<Y>(
        &self,
        svg: &mut String,
        range: std::ops::Range<f64>,
        labels: Vec<f64>,
        y: Y,
    ) -> Result<(), Box<dyn std::error::Error>>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let area = SVGBackend::with_string(svg, (WIDTH as u32, 480)).into_drawing_area();
        area.fill(&WHITE)?;
        let count = labels.len();
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(14)
            .margin_right(LEGEND)
            .x_label_area_size(48)
            .y_label_area_size(70)
            .build_cartesian_2d(range.log_scale().with_key_points(labels), y)?;
        chart
            .configure_mesh()
            .x_labels(count)
            .x_desc(self.x.label)
            .y_desc(self.y.label)
            .x_label_formatter(&|x| (self.x.format)(*x))
            .y_label_formatter(&|y| (self.y.format)(*y))
            .axis_desc_style(("sans-serif", 15))
            .label_style(("sans-serif", 13))
            .max_light_lines(if self.log_y { 9 } else { 0 })
            .light_line_style(BLACK.mix(0.05))
            .draw()?;
        for series in &self.series {
            let color = series.color;
            let points = series.points.iter().copied();
            if series.dashed {
                chart.draw_series(DashedLineSeries::new(points, 6, 5, color.stroke_width(1)))?;
            } else {
                chart.draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?;
                chart.draw_series(points.map(|point| Circle::new(point, 3, color.filled())))?;
            }
        }
        // Beside the lines, which a legend among them would hide.
        for (index, series) in self.series.iter().enumerate() {
            let (left, y) = (WIDTH - LEGEND + 4, 52 + 20 * index as i32);
            let style = series.color.stroke_width(if series.dashed { 1 } else { 2 });
            let dashes: &[(i32, i32)] = match series.dashed {
                true => &[(0, 10), (14, 24)],
                false => &[(0, 24)],
            };
            for (from, to) in dashes {
                area.draw(&PathElement::new([(left + from, y), (left + to, y)], style))?;
            }
            let font = ("sans-serif", 13).into_font().color(&BLACK);
            area.draw(&Text::new(series.label.clone(), (left + 30, y - 6), font))?;
        }
        area.present()?;
        Ok(())
    }
}
