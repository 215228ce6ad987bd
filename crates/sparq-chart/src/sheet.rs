//! What all charts are drawn on.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::{ChartError, Marker};

/// Where a chart is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A file of its own: its title above it, the legend at the right.
    File,
    /// In a page that says what it is: no title.
    Wide,
    /// In the page on a narrow screen: less wide, the legend below.
    Narrow,
}

/// The part to the right that the legend takes, in pixels.
pub(crate) const LEGEND: i32 = 220;

/// The height of a line of the legend below a chart, and of one beside it.
const LINE: i32 = 20;

impl Layout {
    /// The width of the picture, in pixels.
    pub fn width(self) -> i32 {
        match self {
            Layout::File | Layout::Wide => 960,
            Layout::Narrow => 420,
        }
    }

    /// The height of a picture of lines with this many of them, in pixels.
    pub(crate) fn height(self, lines: usize) -> i32 {
        match self {
            Layout::File => 480,
            Layout::Wide => 450,
            Layout::Narrow => 340 + LINE * lines as i32,
        }
    }

    /// Where the lines of a legend begin, and how far apart they are.
    pub(crate) fn legend(self, lines: usize) -> (i32, i32) {
        match self {
            Layout::File => (self.width() - LEGEND + 4, 52),
            Layout::Wide => (self.width() - LEGEND + 4, 24),
            Layout::Narrow => (60, self.height(lines) - LINE * lines as i32 + 4),
        }
    }

    /// Whether the title is drawn.
    pub(crate) fn is_titled(self) -> bool {
        self == Layout::File
    }
}

/// A drawing area that errors name the title of.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a picture of this size.
pub(crate) fn draw(
    title: &str,
    size: (i32, i32),
    draw: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<String, ChartError> {
    let mut svg = String::new();
    {
        let area =
            SVGBackend::with_string(&mut svg, (size.0 as u32, size.1 as u32)).into_drawing_area();
        area.fill(&WHITE)
            .map_err(|error| ChartError::new(title, error))?;
        draw(&area).map_err(|error| ChartError::new(title, error))?;
        area.present()
            .map_err(|error| ChartError::new(title, error))?;
    }
    // A file ends with a line.
    if !svg.ends_with('\n') {
        svg.push('\n');
    }
    Ok(svg)
}

/// Where a text stands beside its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// A text whose height is centred on the place.
pub(crate) fn text(
    area: &Area<'_>,
    text: &str,
    place: (i32, i32),
    size: i32,
    anchor: Anchor,
    color: RGBColor,
) -> Result<(), Box<dyn std::error::Error>> {
    let horizontal = match anchor {
        Anchor::Start => HPos::Left,
        Anchor::Middle => HPos::Center,
        Anchor::End => HPos::Right,
    };
    let style = ("sans-serif", size)
        .into_font()
        .color(&color)
        .pos(Pos::new(horizontal, VPos::Center));
    area.draw(&Text::new(text.to_owned(), place, style))?;
    Ok(())
}

/// A line of a legend: a stroke with its mark, and the name.
pub(crate) fn legend_line(
    area: &Area<'_>,
    (left, top): (i32, i32),
    index: usize,
    label: &str,
    color: RGBColor,
    mark: Option<Marker>,
    dashed: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let y = top + LINE * index as i32;
    let style = color.stroke_width(if dashed { 1 } else { 2 });
    let dashes: &[(i32, i32)] = match dashed {
        true => &[(0, 10), (14, 24)],
        false => &[(0, 24)],
    };
    for (from, to) in dashes {
        area.draw(&PathElement::new([(left + from, y), (left + to, y)], style))?;
    }
    if let Some(mark) = mark {
        mark.draw(area, (left + 12, y), 4, color)?;
    }
    let font = ("sans-serif", 13).into_font().color(&BLACK);
    area.draw(&Text::new(label.to_owned(), (left + 30, y - 6), font))?;
    Ok(())
}
