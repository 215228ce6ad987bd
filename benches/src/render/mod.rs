//! Tables and plots of the documentation, from the files in benches/results.
//!
//! The rendered pages depend on those files alone, so that a check detects stale pages.

mod markers;
mod performance;
pub mod planning;
mod plots;
mod readme;
mod text;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use sparq_output::files::OutputFile;

use crate::report::{self, Bench, E2eReport, PrefillReport, ProgramReport, Report, StartReport};

const RESULTS: &str = "benches/results";
const PERFORMANCE: &str = "docs/performance.md";
const PLANNING: &str = "docs/planning.md";
const PLOTS: &str = "docs/plots";
const README: &str = "README.md";

/// A file of the documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Path from the root of the repository, with `/`.
    pub path: String,
    /// Contents. `None` for a plot without a result, which is deleted.
    pub contents: Option<String>,
}

/// A report and the name of its file without `.json`.
#[derive(Clone, Debug)]
pub struct Named<R> {
    /// Name of the file.
    pub name: String,
    /// The report.
    pub report: R,
}

/// All reports, sorted by name.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Reports on attention.
    pub operations: Vec<Named<Report>>,
    /// Reports on whole decode steps.
    pub steps: Vec<Named<E2eReport>>,
    /// Reports on prefill.
    pub prefills: Vec<Named<PrefillReport>>,
    /// Reports on starts.
    pub starts: Vec<Named<StartReport>>,
    /// Reports on checkpoints in the program.
    pub programs: Vec<Named<ProgramReport>>,
}

impl Results {
    fn is_empty(&self) -> bool {
        self.operations.is_empty()
            && self.steps.is_empty()
            && self.prefills.is_empty()
            && self.starts.is_empty()
            && self.programs.is_empty()
    }
}

/// Renders every page and plot from the results.
///
/// # Errors
/// If a file in the results folder is not a report, or if a page lacks the markers of its rendered
/// part.
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
    let parts = [
        (PERFORMANCE, performance::performance(&results)?),
        (PLANNING, planning::planning(&results)),
        (README, readme::readme(&results)),
    ];
    for (path, part) in parts {
        let page = page(root, path)?;
        pages.push(Page {
            path: path.into(),
            contents: Some(markers::fill(&page, &part).with_context(|| path.to_owned())?),
        });
    }
    Ok(pages)
}

/// The paths of the pages that differ from the files.
///
/// # Errors
/// If a file cannot be read.
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

/// Writes the pages that differ from the files.
///
/// # Errors
/// If a file cannot be written.
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
/// If the folder does not exist, or if a file in it is not a report.
pub fn read_all(root: &Path) -> Result<Results> {
    let folder = root.join(RESULTS);
    if !folder.is_dir() {
        bail!(
            "expected the folder {RESULTS} in {}; run in the root of the repository or name it with \
             --root",
            root.display()
        );
    }
    let mut results = Results::default();
    for name in names_in(&folder, ".json")? {
        let path = folder.join(format!("{name}.json"));
        match report::bench(&path)? {
            Bench::Op | Bench::Backends => results.operations.push(named(name, &path)?),
            Bench::E2e => results.steps.push(named(name, &path)?),
            Bench::Prefill => results.prefills.push(named(name, &path)?),
            Bench::Start => results.starts.push(named(name, &path)?),
            Bench::Program => results.programs.push(named(name, &path)?),
            // For those who tune kernels: no page shows linear layers alone.
            Bench::Linear => {}
        }
    }
    Ok(results)
}

fn named<R: DeserializeOwned>(name: String, path: &Path) -> Result<Named<R>> {
    let report = report::read(path)?;
    Ok(Named { name, report })
}

/// The rendered plots in the folder.
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

/// The sorted names of the files with this ending, without the ending.
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

/// The page of the documentation, or one with a title and markers if it does not exist.
fn page(root: &Path, path: &str) -> Result<String> {
    let file = root.join(path);
    match (file.exists(), path) {
        (true, _) => fs::read_to_string(&file).with_context(|| file.display().to_string()),
        // Without its hand-written text, the README lacks the markers.
        (false, README) => Ok(String::new()),
        (false, _) => Ok(markers::empty_page(path)),
    }
}
