//! Charts as SVG, the same bytes for the same data: no fonts of the system are asked.
//!
//! Each kind of chart is a file: lines ([`Chart`]), a grid of coloured cells ([`HeatMap`]), values with error bars beside their names ([`DotPlot`]), and what
//! lies over positions ([`PositionPlot`]). All are drawn in a [`Layout`], in colours of [`Paint`], whose names a page may give other values in the dark:
//! ink and paper are [`INK`] and [`PAPER`], and nothing else has these colours.

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

/// Why a chart can't be drawn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{title}: {why}")]
pub struct ChartError {
    /// The chart's title.
    pub title: String,
    /// What is wrong.
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
