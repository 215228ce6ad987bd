//! `sparq eval`: what a model can still do with each method, on tasks with scores.

mod plan;
mod view;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use sparq_eval::tasks::TaskOptions;
use sparq_eval::{
    Contender, Ending, Evaluation, ResultsFile, Setup, SummaryRow, TaskName, summarize,
};
use sparq_models::embedded;

use crate::args::{DtypeArgs, ModelArgs, at_least_one, dtype_name, named};
use crate::exit::Outcome;
use crate::interrupt;
use crate::model::ModelSource;
use crate::output::Output;
use crate::progress;
use plan::Plan;
use sparq_device::DeviceChoice;

/// Positions of the examples where nothing is said, if the model has so many.
const DEFAULT_CONTEXT: usize = 4096;

/// Arguments of `sparq eval`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Every example is read once, densely, and each method answers from a copy of the cache. An answer is a line of the file --out, in JSON, written when it is
finished; the same command again goes on where the file ends. Ctrl-C leaves what is unfinished; a second one ends the program.

A budget is a share of the bytes that dense attention moves in a step at the length of the example, on a 16-bit cache. Settings of a method that are no
sizes are written behind its name: sparq:mean=never.

Data sets are read from the files that they are published as: SQuAD v1.1 (dev-v1.1.json), TriviaQA rc (qa/wikipedia-dev.json beside evidence/), or the
parquet or JSON lines of SQuAD, TriviaQA rc and CNN/DailyMail 3.0.0 on the Hugging Face hub.

Examples:
  sparq eval --task needle --methods dense,sparq,h2o --budgets 1/8,1/16 --out runs/needle.jsonl
  sparq eval --model DIR --task bpc --context 1024,2048 --examples 50 --out runs/bpc.jsonl
  sparq eval --model DIR --task squad --data dev-v1.1.json --out runs/squad.jsonl")]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tasks: repetition, needle, bpc and key-value bring their text, squad, trivia-qa and cnn-dailymail need --data
    #[arg(long, value_delimiter = ',', default_value = "repetition,needle,bpc", value_name = "TASK,...",
        value_parser = named::<TaskName>(&["repetition", "needle", "bpc", "key-value", "squad", "trivia-qa", "cnn-dailymail"]))]
    task: Vec<TaskName>,
    /// Methods that are compared; dense is what the others' differences are from
    #[arg(long, default_value = "dense,sparq", value_name = "METHOD,...")]
    methods: String,
    /// Shares of dense attention's bytes, as 1/8 or 0.125
    #[arg(long, value_delimiter = ',', default_value = "1/8", value_parser = plan::budget, value_name = "SHARE,...")]
    budgets: Vec<f64>,
    /// Tokens that text, question and answer fill [default: 4096, or the model's context if it is shorter]
    #[arg(long, value_delimiter = ',', value_parser = at_least_one, value_name = "TOKENS,...")]
    context: Vec<usize>,
    /// Examples of every task and context
    #[arg(long, default_value_t = 20, value_parser = at_least_one, value_name = "N")]
    examples: usize,
    /// What the examples are drawn from
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Facts in a text, each of which is asked for (needle, key-value)
    #[arg(long, default_value_t = 4, value_parser = at_least_one, value_name = "N")]
    needles: usize,
    /// Places in a text where needles are put, from its beginning to its end (needle)
    #[arg(long, default_value_t = 17, value_parser = at_least_one, value_name = "N")]
    depths: usize,
    /// File of a text, instead of the ones inside the program (repetition, needle, bpc)
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// File of the data set (squad, trivia-qa, cnn-dailymail)
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Examples that are done at the same time, each with a part of the processors [default: one per processor, or one on a GPU]
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    jobs: Option<usize>,
    /// File of results, which is begun or gone on with
    #[arg(long, value_name = "FILE.jsonl")]
    out: PathBuf,
    #[command(flatten)]
    dtype: DtypeArgs,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    setup: &'a Setup,
    out: &'a Path,
    /// Answers that were in the file before.
    resumed: usize,
    /// Answers that are new.
    finished: usize,
    interrupted: bool,
    rows: Vec<SummaryRow>,
}

/// Runs the evaluation.
///
/// # Errors
/// When the model, a method, a task or a file can't be used, or the file of results is one of another evaluation.
pub fn run(args: &EvalArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    let source = ModelSource::find(args.model.model.as_deref())?;
    let described = source.describe()?;
    let setup = Setup {
        model: label(&source),
        device: device.to_string(),
        dtype: dtype_name(args.dtype.dtype).into(),
        seed: args.seed,
    };
    let tokenizer = source.tokenizer()?;
    let options = args.options(described.context);
    let contenders = Contender::all(&plan::methods(&args.methods), &args.budgets);
    let plan = Plan::new(&args.task, &options, &tokenizer)?;
    plan.check(&contenders, described.head_dim)?;
    let mut results = ResultsFile::open(&args.out, &setup)?;

    let cancel = interrupt::install()?;
    let loaded = source.load(&device.open(), args.dtype.dtype)?;
    let evaluation = Evaluation {
        model: loaded.model.as_ref(),
        tokenizer: &tokenizer,
        head_dim: described.head_dim,
        dtype: args.dtype.dtype,
        setup: setup.clone(),
        contenders,
    };
    plan.compare(&evaluation, &results)?;
    let jobs = plan.jobs(&evaluation, &results)?;
    let open = jobs
        .iter()
        .flat_map(|job| &job.open)
        .map(|(_, contenders)| contenders.len());
    let resumed = results.records().len();
    let bar = progress::answers(open.sum(), out);
    let ending = evaluation.run(&jobs, args.jobs(device), &cancel, &mut |record| {
        tracing::info!(
            "{} {}: {} {:?} {}",
            record.task,
            record.example,
            record.method,
            record.budget,
            record.score
        );
        bar.inc(1);
        results.append(record)
    })?;
    bar.finish_and_clear();

    let document = Document {
        setup: &setup,
        out: &args.out,
        resumed,
        finished: results.records().len() - resumed,
        interrupted: ending == Ending::Cancelled,
        rows: summarize(results.records()),
    };
    out.text(&view::table(&document.rows).text())?;
    out.document(&document)?;
    if document.interrupted {
        eprintln!(
            "interrupted; {} answers are in {}, and the same command goes on from there",
            results.records().len(),
            args.out.display()
        );
        return Ok(Outcome::Interrupted);
    }
    Ok(Outcome::Done)
}

impl EvalArgs {
    fn options(&self, most: usize) -> TaskOptions {
        let contexts = match self.context.is_empty() {
            true => vec![DEFAULT_CONTEXT.min(most)],
            false => self.context.clone(),
        };
        TaskOptions {
            seed: self.seed,
            examples: self.examples,
            contexts,
            needles: self.needles,
            depths: self.depths,
            text: self.text.clone(),
            data: self.data.clone(),
            most,
        }
    }

    fn jobs(&self, device: &DeviceChoice) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, Into::into);
        self.jobs.unwrap_or_else(|| match device.is_gpu() {
            true => 1,
            false => processors(),
        })
    }
}

/// What records call a model: an id on the hub, or the last part of a path, so that results name no folder of the machine that they come from.
fn label(source: &ModelSource) -> String {
    match source {
        ModelSource::Embedded => embedded::NAME.into(),
        ModelSource::Folder { path, name } => match Path::new(name).exists() {
            true => path
                .canonicalize()
                .ok()
                .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .unwrap_or_else(|| name.clone()),
            false => name.clone(),
        },
    }
}
