//! From files of results to something to look at: a page, tables and figures.
//!
//! [`read`] takes the lines of files apart, [`Report::of`] makes tables and figures of them, and these are written as one HTML page that needs nothing
//! else, as Markdown, or one by one as SVG.

mod attention;
mod cost;
mod figures;
mod format;
mod lines;
mod page;
mod palette;
mod read;
mod scores;

pub use attention::{AttentionRecord, Choice, trace};
pub use cost::Roofline;
pub use figures::{Figure, Picture};
pub use read::{ReportError, Results, read};

use sparq_output::charts::ChartError;
use sparq_output::table::Table;

use crate::{Estimate, Record, TaskName, summarize};
use palette::Palette;

/// A page of sections.
#[derive(Clone, Debug)]
pub struct Report {
    /// What holds for all of it, by name.
    pub facts: Vec<(String, String)>,
    /// The sections.
    pub sections: Vec<Section>,
}

/// A part of the page.
#[derive(Clone, Debug)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// What is to be known to read it.
    pub text: String,
    /// Its tables.
    pub tables: Vec<Table>,
    /// Its figures.
    pub figures: Vec<Figure>,
}

impl Report {
    /// Everything that there is to show: each task of each model, what steps cost where a machine is known, and the attention that was looked at.
    pub fn of(results: &Results, roofline: Option<&Roofline>) -> Self {
        let records = &results.examples;
        let palette = Palette::of(results);
        let mut sections = Vec::new();
        for model in distinct(records.iter().map(|record| &record.model)) {
            for task in TaskName::ALL {
                let of_task = |record: &&Record| record.model == *model && record.task == task;
                let records: Vec<Record> = records.iter().filter(of_task).cloned().collect();
                if !records.is_empty() {
                    sections.push(section(model, task, &records, &palette));
                }
            }
        }
        sections.extend(roofline.map(|roofline| roofline.section()));
        if !results.attention.is_empty() {
            let figures = results.attention.iter();
            sections.push(Section {
                title: "Where attention lies".into(),
                text: "The exact attention probability of the last token of a text, averaged over the query heads that share a key/value head, on a \
                       logarithmic axis; below it the positions that each method reads. Where several positions share a column of pixels, its bar is the \
                       largest of them."
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

    /// The page, with everything in it.
    ///
    /// # Errors
    /// When a figure can't be drawn.
    pub fn html(&self) -> Result<String, ChartError> {
        page::render(self)
    }

    /// The tables in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.facts {
            text += &format!("- {name}: {value}\n");
        }
        for section in self
            .sections
            .iter()
            .filter(|section| !section.tables.is_empty())
        {
            text += &format!("\n## {}\n\n{}\n", section.title, section.text);
            for table in &section.tables {
                text += &format!("\n{}", table.markdown());
            }
        }
        text
    }

    /// All figures.
    pub fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.sections.iter().flat_map(|section| &section.figures)
    }
}

/// A task of a model.
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
        title: format!("{}, {model}", format::title(task)),
        text: format::about(task).into(),
        tables: vec![scores::table(&rows, &all)],
        figures,
    }
}

fn facts(results: &Results) -> Vec<(String, String)> {
    let records = &results.examples;
    let list = |of: fn(&Record) -> String| {
        distinct(records.iter().map(of))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut facts = Vec::new();
    if !records.is_empty() {
        facts.extend([
            ("Models".to_owned(), list(|record| record.model.clone())),
            ("Device".to_owned(), list(|record| record.device.clone())),
            (
                "Weights and cache".to_owned(),
                list(|record| record.dtype.clone()),
            ),
            ("Seed".to_owned(), list(|record| record.seed.to_string())),
            ("Version".to_owned(), list(|record| record.version.clone())),
            ("Finished examples".to_owned(), records.len().to_string()),
        ]);
    }
    facts
}

/// Values without their repetitions, in the order in which they first appear.
fn distinct<T: PartialEq + Clone>(values: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    let mut seen: Vec<T> = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen.into_iter()
}

/// The ends of the interval that holds the true mean 95 times in 100, if the sample is not too small for a normal distribution.
fn interval(estimate: &Estimate) -> Option<(f64, f64)> {
    let half = 1.96 * estimate.standard_error?;
    Some((estimate.mean - half, estimate.mean + half))
}

#[cfg(test)]
mod tests;
