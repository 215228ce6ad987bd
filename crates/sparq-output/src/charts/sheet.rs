//! What all charts are drawn on.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{ChartError, Marker};

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

/// Letters that fit into a line of the legend beside a chart, and below it.
const LETTERS: [usize; 2] = [28, 52];

/// The lines of a name that is too long for one: broken where words, settings and their values end.
pub(crate) fn wrap(name: &str, layout: Layout) -> Vec<String> {
    let letters = LETTERS[usize::from(layout == Layout::Narrow)];
    let mut lines = vec![String::new()];
    for part in name.split_inclusive([' ', ',', ':']) {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() || line.chars().count() + part.trim_end().chars().count() <= letters {
            line.push_str(part);
        } else {
            lines.push(part.to_owned());
        }
    }
    lines
}

/// Lines that the legend of these names takes.
pub(crate) fn legend_lines<'a>(names: impl Iterator<Item = &'a str>, layout: Layout) -> usize {
    names.map(|name| wrap(name, layout).len()).sum()
}

/// How an entry of a legend is drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// The colour.
    pub color: RGBColor,
    /// The mark, if it is worth showing.
    pub mark: Option<Marker>,
    /// Ends of the strokes, from the left; none for marks alone.
    pub dashes: &'static [(i32, i32)],
    /// Width of the strokes.
    pub width: u32,
}

/// An entry of a legend: a stroke with its mark, and the name, at a line of it; the next free line.
pub(crate) fn legend_entry(
    area: &Area<'_>,
    layout: Layout,
    lines: usize,
    line: usize,
    label: &str,
    sample: Sample,
) -> Result<usize, Box<dyn std::error::Error>> {
    let (left, top) = layout.legend(lines);
    let y = top + LINE * line as i32;
    let style = sample.color.stroke_width(sample.width);
    for (from, to) in sample.dashes {
        area.draw(&PathElement::new([(left + from, y), (left + to, y)], style))?;
    }
    if let Some(mark) = sample.mark {
        mark.draw(area, (left + 12, y), 4, sample.color)?;
    }
    let names = wrap(label, layout);
    for (index, name) in names.iter().enumerate() {
        let font = ("sans-serif", 13).into_font().color(&BLACK);
        let place = (left + 30, y - 6 + LINE * index as i32);
        area.draw(&Text::new(name.trim_end().to_owned(), place, font))?;
    }
    Ok(line + names.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_broken_between_settings() {
        let name = "sparq-4bit:score=logits,components=abs-sum";
        let lines = ["sparq-4bit:score=logits,", "components=abs-sum"];
        assert_eq!(wrap(name, Layout::Wide), lines);
        assert_eq!(wrap(name, Layout::Narrow), [name]);
        assert_eq!(wrap("SparQ 4bits logits abs_sum", Layout::File).len(), 1);
        assert_eq!(wrap("", Layout::File), [""]);
    }
}
