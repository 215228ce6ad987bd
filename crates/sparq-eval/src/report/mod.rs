//! Reports of results: tables and figures, as one HTML page, as Markdown or as SVG files.
//!
//! [`read`] parses results files and [`Report::of`] makes the tables and figures.

mod attention;
mod comparison;
mod figures;
mod format;
mod lines;
mod page;
mod palette;
mod read;
mod roofline;
mod scores;

pub use attention::{AttentionRecord, Choice, trace};
pub use figures::{Figure, Picture};
pub use read::{ReportError, Results, read};
pub use roofline::Roofline;

use sparq_output::charts::ChartError;
use sparq_output::table::Table;

use crate::{Estimate, Protocol, Record, TaskName, summarize};
use palette::Palette;

/// A report: facts and sections.
#[derive(Clone, Debug)]
pub struct Report {
    /// Names and values that hold for all results.
    pub facts: Vec<(String, String)>,
    /// The sections.
    pub sections: Vec<Section>,
}

/// A section of a report.
#[derive(Clone, Debug)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// The explanation.
    pub text: String,
    /// The tables.
    pub tables: Vec<Table>,
    /// The figures.
    pub figures: Vec<Figure>,
}

impl Report {
    /// Makes the report: for each model a section with all tasks and one for each task, the
    /// roofline, and the recorded attention.
    pub fn of(results: &Results, roofline: Option<&Roofline>) -> Self {
        let records = &results.examples;
        let palette = Palette::of(results);
        let mut sections = Vec::new();
        let series = records
            .iter()
            .map(|record| (&record.model, record.question));
        for (model, question) in distinct(series) {
            let of_series =
                |record: &&Record| (&record.model, record.question) == (model, question);
            let series: Vec<Record> = records.iter().filter(of_series).cloned().collect();
            let subject = subject(model, question);
            sections.extend(comparison::section(&subject, &series));
            for &task in TaskName::ALL {
                let of_task = |record: &&Record| record.task == task;
                let records: Vec<Record> = series.iter().filter(of_task).cloned().collect();
                if !records.is_empty() {
                    sections.push(section(&subject, task, &records, &palette));
                }
            }
        }
        sections.extend(roofline.map(|roofline| roofline.section()));
        if !results.attention.is_empty() {
            let figures = results.attention.iter();
            sections.push(Section {
                title: "Attention by position".into(),
                text: "The exact attention probability of the last token of a text, averaged over the \
                       query heads of a KV head, on a logarithmic axis. Below it are the positions \
                       that each method reads. If several positions share a column of pixels, its \
                       bar shows the largest of them."
                    .into(),
                tables: results.attention.iter().map(AttentionRecord::table).collect(),
                figures: figures.map(|record| record.figure(&palette)).collect(),
            });
        }
        Self {
            facts: facts(results),
            sections,
        }
    }

    /// Renders the report as one HTML page that needs no other file.
    ///
    /// # Errors
    /// If a figure cannot be drawn.
    pub fn html(&self) -> Result<String, ChartError> {
        page::render(self)
    }

    /// Renders the facts and tables as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.facts {
            text += &format!("- {name}: {value}\n");
        }
        let with_tables = |section: &&Section| !section.tables.is_empty();
        for section in self.sections.iter().filter(with_tables) {
            text += &format!("\n## {}\n\n{}\n", section.title, section.text);
            for table in &section.tables {
                text += &format!("\n{}", table.markdown());
            }
        }
        text
    }

    /// Returns all figures.
    pub fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.sections.iter().flat_map(|section| &section.figures)
    }
}

/// Returns the model of a section, with the protocol unless it is the default.
fn subject(model: &str, question: Protocol) -> String {
    match question {
        Protocol::Method => model.to_owned(),
        Protocol::Dense => format!("{model}, question read densely"),
    }
}

/// Makes the section of a task and model.
fn section(model: &str, task: TaskName, records: &[Record], palette: &Palette) -> Section {
    let pooled = format::pooled(records);
    let rows = summarize(records);
    let all = summarize(&pooled);
    let name = figures::file_name(&format!("{model}-{task}"));
    let mut figures = Vec::new();
    figures.extend(lines::score_by_budget(&name, model, task, &all, palette));
    figures.extend(lines::score_by_context(&name, model, task, &rows, palette));
    if task == TaskName::Needle {
        figures.extend(figures::needles(&name, records));
    }
    figures.extend(figures::ablation(&name, model, task, &all, palette));
    Section {
        title: format!("{}, {model}", task.title()),
        text: task.about().into(),
        tables: vec![scores::table(&rows, &all)],
        figures,
    }
}

fn facts(results: &Results) -> Vec<(String, String)> {
    let records = &results.examples;
    if records.is_empty() {
        return Vec::new();
    }
    let list = |of: fn(&Record) -> String| {
        let values: Vec<String> = distinct(records.iter().map(of)).collect();
        values.join(", ")
    };
    let facts = [
        ("Models", list(|record| record.model.clone())),
        ("Device", list(|record| record.device.clone())),
        ("Weights and cache", list(|record| record.dtype.clone())),
        ("Seed", list(|record| record.seed.to_string())),
        ("Question", list(|record| record.question.about().into())),
        ("Version", list(|record| record.version.clone())),
        ("Finished examples", records.len().to_string()),
    ];
    facts.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Returns the distinct values in order of appearance.
fn distinct<T: PartialEq + Clone>(values: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    let mut seen: Vec<T> = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen.into_iter()
}

/// Returns the 95% confidence interval of a mean, which assumes a normal distribution.
fn interval(estimate: &Estimate) -> Option<(f64, f64)> {
    let half = 1.96 * estimate.standard_error?;
    Some((estimate.mean - half, estimate.mean + half))
}

#[cfg(test)]
mod tests;
