//! The documentation's tables and plots, from the files in benches/results.
//!
//! Everything that is rendered follows from those files alone, so that a check can tell whether what is committed is up to date.

mod markdown;
mod markers;
pub mod planning;
mod plots;
mod summary;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::e2e::report::E2eReport;
use crate::report::{self, Bench, Report};

use sparq_output::files::OutputFile;
pub use summary::goals;

/// Where results lie, from the repository's root.
pub const RESULTS: &str = "benches/results";

const PERFORMANCE: &str = "docs/performance.md";
const PLANNING: &str = "docs/planning.md";
const PLOTS: &str = "docs/plots";
const README: &str = "README.md";

/// What performance.md is made from where it isn't there yet.
const PERFORMANCE_TEMPLATE: &str = include_str!("performance.md");

/// What planning.md is made from where it isn't there yet.
const PLANNING_TEMPLATE: &str = include_str!("planning.md");

/// A file of the documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its path from the repository's root, with `/`.
    pub path: String,
    /// Its contents; `None` for a plot that no result gives any more.
    pub contents: Option<String>,
}

/// A report with the name of its file, without `.json`.
#[derive(Clone, Debug)]
pub struct Named<R> {
    /// The name.
    pub name: String,
    /// The report.
    pub report: R,
}

/// All reports, in the order of their names.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Single operations.
    pub operations: Vec<Named<Report>>,
    /// Whole decode steps.
    pub steps: Vec<Named<E2eReport>>,
}

impl Results {
    fn is_empty(&self) -> bool {
        self.operations.is_empty() && self.steps.is_empty()
    }
}

/// Everything that the results give.
///
/// # Errors
/// When a file in the results folder is no report, or the README lacks the lines between which its tables go.
pub fn pages(root: &Path) -> Result<Vec<Page>> {
    let results = read_all(root)?;
    let mut pages = Vec::new();
    for named in &results.operations {
        for plot in plots::of(named)? {
            pages.push(Page {
                path: format!("{PLOTS}/{}.svg", plot.name),
                contents: Some(plot.svg),
            });
        }
    }
    for path in existing_plots(root)? {
        if pages.iter().all(|page| page.path != path) {
            pages.push(Page {
                path,
                contents: None,
            });
        }
    }
    let performance = read_or(root, PERFORMANCE, PERFORMANCE_TEMPLATE)?;
    pages.push(Page {
        contents: Some(
            markers::fill(&performance, &markdown::performance(&results)?)
                .with_context(|| PERFORMANCE.to_owned())?,
        ),
        path: PERFORMANCE.into(),
    });
    let planning = read_or(root, PLANNING, PLANNING_TEMPLATE)?;
    pages.push(Page {
        contents: Some(
            markers::fill(&planning, &planning::planning(&results))
                .with_context(|| PLANNING.to_owned())?,
        ),
        path: PLANNING.into(),
    });
    let readme = read_or(root, README, "")?;
    pages.push(Page {
        contents: Some(
            markers::fill(&readme, &markdown::readme(&results))
                .with_context(|| README.to_owned())?,
        ),
        path: README.into(),
    });
    Ok(pages)
}

/// The paths whose files are not what the results give.
///
/// # Errors
/// When a file can't be read.
pub fn differences(root: &Path, pages: &[Page]) -> Result<Vec<String>> {
    let mut stale = Vec::new();
    for page in pages {
        let path = root.join(&page.path);
        let found = match path.exists() {
            true => Some(fs::read_to_string(&path).with_context(|| path.display().to_string())?),
            false => None,
        };
        if found != page.contents {
            stale.push(page.path.clone());
        }
    }
    Ok(stale)
}

/// Writes what differs.
///
/// # Errors
/// When a file can't be written.
pub fn write(root: &Path, pages: &[Page]) -> Result<()> {
    let stale = differences(root, pages)?;
    for page in pages.iter().filter(|page| stale.contains(&page.path)) {
        let path = root.join(&page.path);
        let Some(contents) = &page.contents else {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
            continue;
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        OutputFile::create(&path)?.finish_with(contents.as_bytes())?;
    }
    Ok(())
}

/// Reads every report in the results folder.
///
/// # Errors
/// When there is no such folder, or a file in it is no report.
pub fn read_all(root: &Path) -> Result<Results> {
    let folder = root.join(RESULTS);
    if !folder.is_dir() {
        bail!(
            "expected the folder {RESULTS} in {}; run this in the repository's root or name it with --root",
            root.display()
        );
    }
    let mut results = Results::default();
    for name in names_in(&folder, ".json")? {
        let path = folder.join(format!("{name}.json"));
        let value = report::read_value(&path)?;
        if value.get("bench") == Some(&serde_json::to_value(Bench::E2e)?) {
            let report = E2eReport::read(&path)?;
            results.steps.push(Named { name, report });
        } else {
            let report = Report::read(&path)?;
            results.operations.push(Named { name, report });
        }
    }
    Ok(results)
}

/// The plots that an earlier rendering left.
fn existing_plots(root: &Path) -> Result<Vec<String>> {
    let folder = root.join(PLOTS);
    if !folder.is_dir() {
        return Ok(vec![]);
    }
    let names = names_in(&folder, ".svg")?;
    Ok(names
        .into_iter()
        .filter(|name| name.starts_with(plots::PREFIX))
        .map(|name| format!("{PLOTS}/{name}.svg"))
        .collect())
}

/// The names of the files that end so, without the ending, in order.
fn names_in(folder: &Path, ending: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let entry = entry.with_context(|| folder.display().to_string())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(ending).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn read_or(root: &Path, path: &str, otherwise: &str) -> Result<String> {
    let path = root.join(path);
    match path.exists() {
        true => fs::read_to_string(&path).with_context(|| path.display().to_string()),
        false => Ok(otherwise.to_owned()),
    }
}
