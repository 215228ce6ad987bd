//! Colours and markers.

use plotters::prelude::*;

use super::sheet::{Area, Drawn};

/// The colour of text, axes and black lines in the SVG.
pub const INK: &str = "#000000";

/// The colour of the background in the SVG.
pub const PAPER: &str = "#FFFFFF";

/// Colours that differ for any kind of colour vision (Okabe and Ito).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Black, the colour of dense attention.
    Black,
    /// Grey, for secondary lines.
    Grey,
    /// Vermilion.
    Vermilion,
    /// Orange.
    Orange,
    /// Blue.
    Blue,
    /// Sky blue.
    Sky,
    /// Bluish green.
    Green,
    /// Reddish purple.
    Purple,
}

impl Paint {
    /// The colours of lines, the most different first.
    pub const LINES: [Paint; 7] = [
        Paint::Vermilion,
        Paint::Blue,
        Paint::Green,
        Paint::Purple,
        Paint::Orange,
        Paint::Sky,
        Paint::Grey,
    ];

    pub(crate) fn rgb(self) -> RGBColor {
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

    /// Returns the colour as written in the SVG.
    ///
    /// ```
    /// assert_eq!(sparq_output::charts::Paint::Blue.hex(), "#0072B2");
    /// ```
    pub fn hex(self) -> String {
        let RGBColor(r, g, b) = self.rgb();
        format!("#{r:02X}{g:02X}{b:02X}")
    }
}

/// The marker of a point, which distinguishes lines without their colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Marker {
    /// A disc.
    #[default]
    Circle,
    /// A square.
    Square,
    /// A triangle that points up.
    Triangle,
    /// A square on its corner.
    Diamond,
    /// An X.
    Cross,
    /// A triangle that points down.
    Tip,
}

impl Marker {
    /// All markers.
    pub const ALL: [Marker; 6] = [
        Marker::Circle,
        Marker::Square,
        Marker::Triangle,
        Marker::Diamond,
        Marker::Cross,
        Marker::Tip,
    ];

    /// Returns the corners of a marker of radius `r`, relative to its point. A disc has none.
    fn corners(self, r: i32) -> Vec<(i32, i32)> {
        match self {
            Marker::Circle => vec![],
            Marker::Square => vec![(-r, -r), (r, -r), (r, r), (-r, r)],
            Marker::Triangle => vec![(0, -r - 1), (r + 1, r), (-r - 1, r)],
            Marker::Diamond => vec![(0, -r - 2), (r + 2, 0), (0, r + 2), (-r - 2, 0)],
            Marker::Tip => vec![(0, r + 1), (r + 1, -r), (-r - 1, -r)],
            Marker::Cross => {
                let w = r - 1;
                let (a, b) = (r + 1, w.max(1));
                vec![
                    (-a, -b),
                    (-b, -a),
                    (0, -(a - b)),
                    (b, -a),
                    (a, -b),
                    (a - b, 0),
                    (a, b),
                    (b, a),
                    (0, a - b),
                    (-b, a),
                    (-a, b),
                    (-(a - b), 0),
                ]
            }
        }
    }

    /// Draws the marker at a place.
    pub(crate) fn draw(
        self,
        area: &Area<'_>,
        (x, y): (i32, i32),
        radius: i32,
        color: RGBColor,
    ) -> Drawn {
        if self == Marker::Circle {
            area.draw(&Circle::new((x, y), radius, color.filled()))?;
            return Ok(());
        }
        let corners = self.corners(radius).into_iter();
        let corners: Vec<_> = corners.map(|(dx, dy)| (x + dx, y + dy)).collect();
        area.draw(&Polygon::new(corners, color.filled()))?;
        Ok(())
    }
}
