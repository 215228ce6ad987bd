//! The drawing area, layouts, text and legends of all charts.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{ChartError, Marker};

/// The place where a chart is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A separate file, with the title above and the legend on the right.
    File,
    /// A page that states the title.
    Wide,
    /// A page on a narrow screen, with the legend below.
    Narrow,
}

/// The width of the legend on the right, in pixels.
pub(crate) const LEGEND: i32 = 220;

/// The height of a line of the legend, in pixels.
const LINE: i32 = 20;

impl Layout {
    /// Returns the width of the picture in pixels.
    pub fn width(self) -> i32 {
        match self {
            Layout::File | Layout::Wide => 960,
            Layout::Narrow => 420,
        }
    }

    /// Returns the height of a line chart in pixels. `lines` is the number of lines of its legend.
    pub(crate) fn height(self, lines: usize) -> i32 {
        match self {
            Layout::File => 480,
            Layout::Wide => 450,
            Layout::Narrow => 340 + LINE * lines as i32,
        }
    }

    /// Returns the place of the first line of the legend.
    pub(crate) fn legend(self, lines: usize) -> (i32, i32) {
        match self {
            Layout::File => (self.width() - LEGEND + 4, 52),
            Layout::Wide => (self.width() - LEGEND + 4, 24),
            Layout::Narrow => (60, self.height(lines) - LINE * lines as i32 + 4),
        }
    }

    /// Returns whether the title is drawn.
    pub(crate) fn is_titled(self) -> bool {
        self == Layout::File
    }
}

/// A drawing area.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The result of drawing. plotters has a separate error for every backend.
pub(crate) type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Draws a picture of this size.
pub(crate) fn draw(
    title: &str,
    size: (i32, i32),
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<String, ChartError> {
    let mut svg = String::new();
    {
        let backend = SVGBackend::with_string(&mut svg, (size.0 as u32, size.1 as u32));
        let area = backend.into_drawing_area();
        let drawn = || {
            area.fill(&WHITE)?;
            draw(&area)?;
            Ok(area.present()?)
        };
        drawn().map_err(|error: Box<dyn std::error::Error>| ChartError::new(title, error))?;
    }
    // A text file ends with a line break.
    if !svg.ends_with('\n') {
        svg.push('\n');
    }
    Ok(svg)
}

/// The horizontal alignment of a text to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    /// The text begins at the place.
    Start,
    /// The middle of the text is at the place.
    Middle,
    /// The text ends at the place.
    End,
}

/// Draws a text, vertically centred on the place.
pub(crate) fn text(
    area: &Area<'_>,
    text: &str,
    place: (i32, i32),
    size: i32,
    anchor: Anchor,
    color: RGBColor,
) -> Drawn {
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

/// The number of letters in a line of the legend, beside a chart and below it.
const LETTERS: [usize; 2] = [28, 52];

/// Breaks a name into lines of the legend, after spaces, commas and colons.
pub(crate) fn wrap(name: &str, layout: Layout) -> Vec<String> {
    let letters = LETTERS[usize::from(layout == Layout::Narrow)];
    let mut lines = vec![String::new()];
    for part in name.split_inclusive([' ', ',', ':']) {
        let line = lines.last_mut().expect("lines begin with one");
        if line.is_empty() || line.chars().count() + part.trim_end().chars().count() <= letters {
            line.push_str(part);
        } else {
            lines.push(part.to_owned());
        }
    }
    lines
}

/// Returns the number of lines of a legend.
pub(crate) fn legend_lines<'a>(names: impl Iterator<Item = &'a str>, layout: Layout) -> usize {
    names.map(|name| wrap(name, layout).len()).sum()
}

/// The sample of a line in the legend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// The colour.
    pub color: RGBColor,
    /// The marker, if it is shown.
    pub mark: Option<Marker>,
    /// The strokes, from the left. Empty for markers without a line.
    pub dashes: &'static [(i32, i32)],
    /// The width of the strokes.
    pub width: u32,
}

/// Draws an entry of the legend: the sample and the name. Returns the next free line.
pub(crate) fn legend_entry(
    area: &Area<'_>,
    layout: Layout,
    lines: usize,
    line: usize,
    label: &str,
    sample: Sample,
) -> Drawn<usize> {
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
    fn long_names_break_between_settings() {
        let name = "sparq-4bit:score=logits,components=abs-sum";
        let lines = ["sparq-4bit:score=logits,", "components=abs-sum"];
        assert_eq!(wrap(name, Layout::Wide), lines);
        assert_eq!(wrap(name, Layout::Narrow), [name]);
        assert_eq!(wrap("SparQ 4bits logits abs_sum", Layout::File).len(), 1);
        assert_eq!(wrap("", Layout::File), [""]);
    }
}
