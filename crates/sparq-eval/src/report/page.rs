//! The HTML page of a report: one file that loads nothing else.

use minijinja::{Environment, syntax::SyntaxConfig, value::Value};
use sparq_output::charts::{ChartError, INK, Layout, PAPER, Paint};
use sparq_output::table::Table;

use super::{Figure, Report, Section};

const TEMPLATE: &str = include_str!("page.html");

/// Colours by name: the paint that charts use, and the colour on a light and on a dark background
/// with enough contrast. The style of the page replaces the colours of the charts.
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

/// Renders the template.
pub fn render(report: &Report) -> Result<String, ChartError> {
    let sections = report.sections.iter().enumerate();
    let sections: Vec<Value> = sections
        .map(|(index, part)| section(index, part))
        .collect::<Result<_, _>>()?;
    let facts = report.facts.iter();
    let facts = facts.map(|(name, value)| Value::from(vec![name.clone(), value.clone()]));
    let colors = COLORS.iter().map(|(name, paint, light, dark)| {
        let drawn = paint.map_or((*light).to_owned(), Paint::hex);
        Value::from_pairs([
            ("name", Value::from(*name)),
            ("drawn", Value::from(drawn)),
            ("light", Value::from(*light)),
            ("dark", Value::from(*dark)),
        ])
    });
    let values = Value::from_pairs([
        ("facts", Value::from(facts.collect::<Vec<_>>())),
        ("sections", Value::from(sections)),
        ("colors", Value::from(colors.collect::<Vec<_>>())),
    ]);
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    let rendered = syntax.build().and_then(|syntax| {
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        // The ending .html turns on the escaping of values.
        environment.add_template("page.html", TEMPLATE)?;
        environment.get_template("page.html")?.render(values)
    });
    Ok(rendered.expect("the embedded template renders"))
}

fn section(index: usize, section: &Section) -> Result<Value, ChartError> {
    let figures: Result<Vec<Value>, _> = section.figures.iter().map(figure).collect();
    let tables: Vec<Value> = section.tables.iter().map(table).collect();
    Ok(Value::from_pairs([
        ("id", Value::from(format!("section-{}", index + 1))),
        ("title", Value::from(section.title.as_str())),
        ("text", Value::from(section.text.as_str())),
        ("tables", Value::from(tables)),
        ("figures", Value::from(figures?)),
    ]))
}

fn figure(figure: &Figure) -> Result<Value, ChartError> {
    let small = figure.picture.is_small();
    let svg = |layout| figure.picture.svg(layout).map(Value::from_safe_string);
    Ok(Value::from_pairs([
        ("title", Value::from(figure.title.as_str())),
        ("caption", Value::from(figure.caption.as_str())),
        ("small", Value::from(small)),
        ("wide", svg(Layout::Wide)?),
        // A small picture is as narrow as the narrow layout and is drawn once.
        (
            "narrow",
            match small {
                true => Value::from(""),
                false => svg(Layout::Narrow)?,
            },
        ),
    ]))
}

fn table(table: &Table) -> Value {
    let rows = table.rows.iter().map(|row| {
        let cells = row.iter().map(|cell| {
            Value::from_pairs([
                ("text", Value::from(cell.text.as_str())),
                ("value", Value::from(cell.value)),
            ])
        });
        Value::from(cells.collect::<Vec<_>>())
    });
    Value::from_pairs([
        ("headings", Value::from(table.headings.clone())),
        ("rows", Value::from(rows.collect::<Vec<_>>())),
    ])
}
