//! `sparq report`: makes a page, tables and figures from results.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use sparq::{Method, Sketch, SparqConfig};
use sparq_eval::report::{Report, Roofline, read};
use sparq_models::DecoderConfig;
use sparq_output::charts::Layout;
use sparq_output::files::OutputFile;
use sparq_plan::{Machine, ModelShape, Setup};

use crate::args::ModelArgs;
use crate::exit::Outcome;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  sparq report runs.jsonl --out report.html
  sparq report runs.jsonl attention.jsonl --out report.html --figures figures
  sparq report runs.jsonl --markdown quality.md --machine A100 --model DIR";

/// The bytes of an element of weights and cache in the roofline.
const ELEMENT_BYTES: usize = 2;

/// The arguments of `sparq report`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ReportArgs {
    /// Results files of `sparq eval` and `sparq attention`
    #[arg(value_name = "FILE.jsonl", required = true)]
    files: Vec<PathBuf>,
    /// Write an HTML page, which needs no other file and no network
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// Write the tables as Markdown
    #[arg(long, value_name = "FILE.md")]
    markdown: Option<PathBuf>,
    /// Write the figures as SVG files to a folder
    #[arg(long, value_name = "DIR")]
    figures: Option<PathBuf>,
    /// The model of the roofline.
    #[command(flatten)]
    model: ModelArgs,
    /// Machine of the roofline: part of a GPU's name, or a file written by `sparq plan --save`
    #[arg(long, value_name = "NAME|FILE", default_value = "H100")]
    machine: String,
}

#[derive(Serialize)]
struct Document {
    examples: usize,
    attention: usize,
    figures: usize,
    written: Vec<PathBuf>,
}

/// Reads the results and writes the reports.
///
/// # Errors
/// If a file cannot be read or written or holds no results, or no report was requested.
pub fn run(args: &ReportArgs, out: Output) -> Result<Outcome> {
    if args.out.is_none() && args.markdown.is_none() && args.figures.is_none() {
        bail!("expected --out, --markdown or --figures, found none");
    }
    let results = read(&args.files)?;
    let report = Report::of(&results, Some(&roofline(args)?));
    let mut written = Vec::new();
    let mut write = |path: PathBuf, contents: &str| -> Result<()> {
        OutputFile::create(&path)?.finish_with(contents.as_bytes())?;
        out.line(&format!("wrote {}", path.display()))?;
        written.push(path);
        Ok(())
    };
    if let Some(path) = &args.out {
        write(path.clone(), &report.html()?)?;
    }
    if let Some(path) = &args.markdown {
        write(path.clone(), &report.markdown())?;
    }
    if let Some(folder) = &args.figures {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        for figure in report.figures() {
            let path = folder.join(format!("{}.svg", figure.name));
            write(path, &figure.picture.svg(Layout::File)?)?;
        }
    }
    out.document(&Document {
        examples: results.examples.len(),
        attention: results.attention.len(),
        figures: report.figures().count(),
        written,
    })?;
    Ok(Outcome::Done)
}

fn roofline(args: &ReportArgs) -> Result<Roofline> {
    let source = args.model.source(None)?;
    let checkpoint = source.checkpoint()?;
    let model = ModelShape::of(&DecoderConfig::from_checkpoint(&checkpoint)?);
    let rank = (model.head_dim / 4).max(1);
    let sparq = |sketch| SparqConfig::new(rank, 128).with_sketch(sketch).into();
    let machine = Machine::find(&args.machine).context("--machine")?;
    Ok(Roofline {
        model: source.to_string(),
        setup: Setup::new(model, machine, ELEMENT_BYTES),
        methods: vec![Method::DENSE, sparq(Sketch::Full), sparq(Sketch::Bits4)],
    })
}
