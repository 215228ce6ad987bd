//! The page: one HTML file that asks for nothing else.

use minijinja::{Environment, context};
use serde::Serialize;
use sparq_chart::{ChartError, INK, Layout, PAPER, Paint};

use super::{Figure, Report, Table};

const TEMPLATE: &str = include_str!("page.html");

/// Colours on a light and on a dark ground, each light enough or dark enough to be read there. Those of charts are written over in the page's style.
const COLORS: [(&str, Option<Paint>, &str, &str); 10] = [
    ("paper", None, PAPER, "#15181D"),
    ("ink", Some(Paint::Black), INK, "#E8E6E1"),
    ("grey", Some(Paint::Grey), "#767676", "#9A9A9A"),
    ("vermilion", Some(Paint::Vermilion), "#D55E00", "#FF7F2A"),
    ("orange", Some(Paint::Orange), "#B87D00", "#E69F00"),
    ("blue", Some(Paint::Blue), "#0072B2", "#4BA3F2"),
    ("sky", Some(Paint::Sky), "#2F8FC4", "#9ADBFF"),
    ("green", Some(Paint::Green), "#00805D", "#21C79A"),
    ("purple", Some(Paint::Purple), "#B0578A", "#E6A1C8"),
    ("rule", None, "#D8D8D8", "#3A3F47"),
];

#[derive(Serialize)]
struct Drawn<'a> {
    title: &'a str,
    caption: &'a str,
    small: bool,
    wide: String,
    narrow: String,
}

#[derive(Serialize)]
struct Shown<'a> {
    id: String,
    title: &'a str,
    text: &'a str,
    tables: &'a [Table],
    figures: Vec<Drawn<'a>>,
}

#[derive(Serialize)]
struct Color {
    name: &'static str,
    /// What a chart has in its place.
    drawn: String,
    light: &'static str,
    dark: &'static str,
}

/// Fills the template.
pub fn render(report: &Report) -> Result<String, ChartError> {
    let draw = |figure: &'_ Figure| -> Result<(String, String), ChartError> {
        let svg = |layout| figure.picture.svg(layout);
        let wide = svg(Layout::Wide)?;
        // What is as small as the narrow one is drawn once.
        let narrow = match figure.picture.is_small() {
            true => String::new(),
            false => svg(Layout::Narrow)?,
        };
        Ok((wide, narrow))
    };
    let mut sections = Vec::new();
    for (index, section) in report.sections.iter().enumerate() {
        let mut figures = Vec::new();
        for figure in &section.figures {
            let (wide, narrow) = draw(figure)?;
            figures.push(Drawn {
                title: &figure.title,
                caption: &figure.caption,
                small: figure.picture.is_small(),
                wide,
                narrow,
            });
        }
        sections.push(Shown {
            id: format!("section-{}", index + 1),
            title: &section.title,
            text: &section.text,
            tables: &section.tables,
            figures,
        });
    }
    let color =
        |(name, paint, light, dark): &(&'static str, Option<Paint>, &'static str, &'static str)| {
            Color {
                name,
                drawn: paint.map_or((*light).to_owned(), Paint::hex),
                light,
                dark,
            }
        };
    let colors: Vec<Color> = COLORS.iter().map(color).collect();
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    // Named as HTML, so that values are escaped.
    let rendered = environment
        .add_template("page.html", TEMPLATE)
        .and_then(|()| {
            environment.get_template("page.html")?.render(context! {
                facts => report.facts,
                sections => sections,
                colors => colors,
            })
        });
    // The template is a part of the program, and its values are plain data.
    Ok(rendered.expect("the template of the page renders whatever its values"))
}
