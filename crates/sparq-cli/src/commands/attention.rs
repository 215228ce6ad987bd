//! `sparq attention`: the attention of a text's last token by position, and the positions that
//! methods read.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use sparq::Method;
use sparq_device::DeviceChoice;
use sparq_eval::report::trace;
use sparq_output::files::OutputFile;
use sparq_output::table::Table;

use crate::args::{DtypeArgs, ModelArgs, at_least_one, share, whole};
use crate::exit::Outcome;
use crate::model::ModelSource;
use crate::output::Output;
use crate::progress;

const EXAMPLES: &str = "\
Examples:
  sparq attention --text README.md --layer 2 --out attention.jsonl
  sparq attention --text book.txt --layer 5 --method sparq-4bit:r=8,k=64 --method h2o:k=64
  sparq report attention.jsonl --out report.html        show the record as a figure";

/// The default of --context.
const CONTEXT: usize = 2048;

/// The default methods.
const METHODS: [&str; 4] = ["sparq", "sparq-4bit", "lm-infinite", "oracle"];

/// The arguments of `sparq attention`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct AttentionArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    dtype: DtypeArgs,
    /// Text file. Its last token attends to the others
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Number of tokens to read at most [default: 2048, or the model's context if shorter]
    #[arg(long, value_parser = at_least_one, value_name = "TOKENS")]
    context: Option<usize>,
    /// Layer, counted from 0
    #[arg(long, value_name = "N", default_value = "0", value_parser = whole::<usize>)]
    layer: usize,
    /// KV head, counted from 0
    #[arg(long, value_name = "N", default_value = "0", value_parser = whole::<usize>)]
    kv_head: usize,
    /// Method, with settings after a colon [default: sparq, sparq-4bit, lm-infinite and oracle at
    /// --budget]
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<String>,
    /// Share of dense attention's bytes that a method without settings may move
    #[arg(long, value_parser = share, value_name = "SHARE", default_value = "1/8")]
    budget: f64,
    /// Write the record to a file for `sparq report`
    #[arg(long, value_name = "FILE.jsonl")]
    out: Option<PathBuf>,
}

#[derive(Serialize)]
struct Row {
    method: String,
    settings: Method,
    positions: usize,
    transfer: f64,
    kept: f64,
}

#[derive(Serialize)]
struct Document {
    model: ModelSource,
    layer: usize,
    kv_head: usize,
    positions: usize,
    methods: Vec<Row>,
}

/// Reads the text and records the attention of its last token.
///
/// # Errors
/// If the model or the text cannot be read, the layer, head or method does not exist, or the file
/// cannot be written.
pub fn run(args: &AttentionArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    let output = args.out.as_deref().map(OutputFile::create).transpose()?;
    let source = args.model.source(None)?;
    let description = source.describe()?;
    let limit = args.context.unwrap_or(CONTEXT).min(description.context);
    let tokens = source.text_tokens("--text", &args.text, limit)?;
    let [before @ .., last] = &tokens[..] else {
        bail!("--text {}: expected text, found none", args.text.display());
    };
    if before.is_empty() {
        bail!(
            "--text {}: expected at least 2 tokens, found 1",
            args.text.display()
        );
    }
    let methods = methods(args, description.head_dim, tokens.len())?;
    let dtype = args.dtype.of(description.stored_float, device);
    let loaded = source.load(&device.open(), dtype)?;
    let model = loaded.model.as_ref();
    let all: Vec<Method> = methods.iter().map(|(_, method)| *method).collect();
    let mut cache = model.new_shared_cache(1, tokens.len(), dtype, &all)?;
    progress::read(model, &mut cache, before, out)?;

    let head = (args.layer, args.kv_head);
    let record = trace(model, &cache, *last, head, &methods, source.json_name())?;
    if let Some(output) = output {
        let mut line = serde_json::to_vec(&record).context("cannot write the record as JSON")?;
        line.push(b'\n');
        output.finish_with(&line)?;
    }
    let rows = record.choices.iter().map(|choice| Row {
        method: choice.method.clone(),
        settings: choice.settings,
        positions: choice.positions.len(),
        transfer: choice.transfer,
        kept: record.kept(choice),
    });
    let document = Document {
        model: source,
        layer: args.layer,
        kv_head: args.kv_head,
        positions: record.mass.len(),
        methods: rows.collect(),
    };
    print(&document, out)?;
    out.document(&document)?;
    Ok(Outcome::Done)
}

/// Returns the methods with their settings. Methods without settings get those of the budget.
fn methods(args: &AttentionArgs, head_dim: usize, len: usize) -> Result<Vec<(String, Method)>> {
    let names: Vec<&str> = match &args.methods[..] {
        [] => METHODS.into(),
        given => given.iter().map(String::as_str).collect(),
    };
    let method = |name: &str| -> Result<(String, Method)> {
        let method = match name.contains(':') || name == "dense" {
            true => name.parse::<Method>(),
            false => Method::for_budget(name, head_dim, len, args.budget),
        };
        let method = method.and_then(|method| method.validate(head_dim).map(|()| method));
        let method = method.with_context(|| format!("--method {name}"))?;
        Ok((name.to_owned(), method))
    };
    names.into_iter().map(method).collect()
}

fn print(document: &Document, out: Output) -> Result<()> {
    out.line(&format!(
        "The last of {} tokens, layer {}, KV head {} of {}",
        document.positions, document.layer, document.kv_head, document.model
    ))?;
    let mut table = Table::new(["method", "positions", "moved", "probability kept"]);
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    for row in &document.methods {
        table.row([
            row.method.clone(),
            row.positions.to_string(),
            percent(row.transfer),
            percent(row.kept),
        ]);
    }
    out.text(&table.text())
}
