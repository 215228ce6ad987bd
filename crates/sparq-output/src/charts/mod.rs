//! Charts as SVG. The same data give the same bytes, because no system fonts are used.
//!
//! There are four kinds: lines ([`Chart`]), coloured cells ([`HeatMap`]), named values with error
//! bars ([`DotPlot`]) and values over positions ([`PositionPlot`]). All are drawn in a [`Layout`]
//! with the colours of [`Paint`]. Text and background are [`INK`] and [`PAPER`], which nothing else
//! uses, so a page can replace them in dark mode.

mod dots;
mod heat;
mod lines;
mod paint;
mod positions;
mod sheet;

pub use dots::{Dot, DotPlot};
pub use heat::{Cell, HeatMap};
pub use lines::{Axis, Chart, Scale, Series};
pub use paint::{INK, Marker, PAPER, Paint};
pub use positions::{PositionPlot, Row};
pub use sheet::Layout;

/// An error of drawing a chart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{title}: {why}")]
pub struct ChartError {
    /// The title of the chart.
    pub title: String,
    /// The reason.
    pub why: String,
}

impl ChartError {
    fn new(title: &str, why: impl std::fmt::Display) -> Self {
        Self {
            title: title.to_owned(),
            why: why.to_string(),
        }
    }
}
