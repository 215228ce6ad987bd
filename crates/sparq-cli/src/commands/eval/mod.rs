//! `sparq eval`: evaluates methods on tasks and writes a record of every answer.

mod plan;
mod view;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use serde::Serialize;
use sparq_device::DeviceChoice;
use sparq_eval::tasks::TaskOptions;
use sparq_eval::{
    BudgetedMethod, Ending, Evaluation, Protocol, ResultsFile, Setup, SummaryRow, TaskName,
    summarize,
};
use sparq_models::embedded;

use crate::args::{DtypeArgs, ModelArgs, at_least_one, dtype_name, share, whole};
use crate::exit::Outcome;
use crate::interrupt;
use crate::model::{ModelSource, Place};
use crate::output::Output;
use crate::progress;
use plan::Plan;

/// The default of --context.
const DEFAULT_CONTEXT: usize = 4096;

/// The bytes of an element of the cache that budgets are for.
const CACHE_BYTES: usize = 2;

/// The arguments of `sparq eval`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The text of every example is read once with dense attention. Every method reads the question from a copy \
of the cache, token by token, and answers. With --question dense, dense attention reads the question too, \
which often finds the answer already. Each answer becomes a line of JSON in the file --out. The same \
command continues an unfinished file. Ctrl-C drops unfinished answers; a second Ctrl-C ends the program \
at once.

A budget is a share of the bytes that dense attention moves per decode step at the length of the \
example, with a 16-bit cache. Other settings of a method follow its name: sparq:mean=never. A method \
with both r and k (sparq-4bit:r=16,k=256,rows=int8) has no budget: it is evaluated once, and its bytes are \
counted. anchors=10 lets 10 layers select positions for all, in a model converted with --calibrate; a \
budget is then the mean over the layers.

Data sets are read from their published files: SQuAD v1.1 (dev-v1.1.json), TriviaQA rc \
(qa/wikipedia-dev.json beside evidence/), or the parquet or JSON lines files of SQuAD, TriviaQA rc and \
CNN/DailyMail 3.0.0 on the Hugging Face Hub. ruler-qa reads the JSON of SQuAD or HotpotQA, ruler-file the \
lines that RULER's scripts write (input, outputs, answer_prefix), longbench-v2 its data.json, infinitebench \
its files by their names (passkey.jsonl, ...), and mrcr its parquet files.

Examples:
  sparq eval --task needle --methods dense,sparq,h2o --budgets 1/8,1/16 --out runs/needle.jsonl
  sparq eval --model DIR --task bpc --context 1024,2048 --examples 50 --out runs/bpc.jsonl
  sparq eval --model DIR --task niah-multikey-1 --context 32768 --out runs/ruler.jsonl
  sparq eval --model DIR --task squad --data dev-v1.1.json --out runs/squad.jsonl")]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tasks to evaluate
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "repetition,needle,bpc",
        value_name = "TASK,...",
        value_parser = task_parser()
    )]
    task: Vec<TaskName>,
    /// Methods to compare. The others are compared with dense. lossless has dense attention's
    /// answers, and drafts at its budget
    #[arg(long, default_value = "dense,sparq", value_name = "METHOD,...")]
    methods: String,
    /// Budgets: shares of dense attention's bytes, such as 1/8 or 0.125
    #[arg(long, value_delimiter = ',', default_value = "1/8", value_parser = share, value_name = "SHARE,...")]
    budgets: Vec<f64>,
    /// Attention that reads the questions. The text before them is always read densely
    #[arg(long, default_value = Protocol::default().name(), value_parser = question_parser(), value_name = "WHO")]
    question: Protocol,
    /// Number of tokens of text, question and answer [default: 4096, or the model's context if
    /// shorter]
    #[arg(long, value_delimiter = ',', value_parser = at_least_one, value_name = "TOKENS,...")]
    context: Vec<usize>,
    /// Number of examples of every task and context
    #[arg(long, default_value_t = 20, value_parser = at_least_one, value_name = "N")]
    examples: usize,
    /// Seed of the examples
    #[arg(long, default_value_t = 0, value_parser = whole::<u64>)]
    seed: u64,
    /// Number of facts in a text, with a question for each (needle, key-value)
    #[arg(long, default_value_t = 4, value_parser = at_least_one, value_name = "N")]
    needles: usize,
    /// Number of tokens to generate (long-generation)
    #[arg(long, default_value_t = 2000, value_parser = at_least_one, value_name = "N")]
    generated: usize,
    /// Number of depths at which needles are placed, from the beginning of a text to its end
    /// (needle)
    #[arg(long, default_value_t = 17, value_parser = at_least_one, value_name = "N")]
    depths: usize,
    /// Text file to use instead of the embedded texts, for tasks made of prose
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// File of the data set (ruler-qa, ruler-file, squad, trivia-qa, cnn-dailymail, longbench-v2,
    /// infinitebench, mrcr)
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Number of examples to run in parallel, each on an equal share of the processors [default:
    /// one per processor, or one on a GPU]
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    jobs: Option<usize>,
    /// Results file to create or continue
    #[arg(long, value_name = "FILE.jsonl")]
    out: PathBuf,
    #[command(flatten)]
    dtype: DtypeArgs,
}

/// Returns the parser of task names, which help lists with the titles of the tasks.
fn task_parser() -> impl TypedValueParser<Value = TaskName> {
    let argument = |task: &TaskName| task.name().replace('_', "-");
    let values = TaskName::ALL.iter();
    let values = values.map(|task| PossibleValue::new(argument(task)).help(task.title()));
    PossibleValuesParser::new(values).try_map(move |name| {
        let found = TaskName::ALL.iter().find(|task| argument(task) == name);
        found.copied().ok_or("unknown task")
    })
}

/// Returns the parser of protocols.
fn question_parser() -> impl TypedValueParser<Value = Protocol> {
    let values = Protocol::ALL.iter();
    let values = values.map(|protocol| PossibleValue::new(protocol.name()).help(protocol.about()));
    PossibleValuesParser::new(values).try_map(|name| {
        let found = Protocol::ALL
            .iter()
            .find(|protocol| protocol.name() == name);
        found.copied().ok_or("unknown protocol")
    })
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    setup: &'a Setup,
    out: &'a Path,
    /// The number of answers that the file had before.
    resumed: usize,
    /// The number of new answers.
    finished: usize,
    interrupted: bool,
    rows: Vec<SummaryRow>,
}

/// Runs the evaluation.
///
/// # Errors
/// If the model, a method, a task or a file cannot be used, or the results file belongs to another
/// evaluation.
pub fn run(args: &EvalArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    let source = args.model.source(None)?;
    let described = source.describe()?;
    let dtype = args.dtype.of(described.stored_float, device);
    let setup = Setup {
        model: label(&source),
        device: device.to_string(),
        dtype: dtype_name(dtype).into(),
        seed: args.seed,
        question: args.question,
    };
    let tokenizer = source.tokenizer()?;
    let options = args.options(described.context);
    let methods = BudgetedMethod::all(&plan::methods(&args.methods), &args.budgets);
    let plan = Plan::new(&args.task, &options, &tokenizer)?;
    plan.check(&methods, &described)?;
    let mut results = ResultsFile::open(&args.out, &setup)?;

    let cancel = interrupt::install()?;
    let loaded = source.load(&device.open(), dtype)?;
    let evaluation = Evaluation {
        model: loaded.model.as_ref(),
        tokenizer: &tokenizer,
        shape: described.cache_shape(CACHE_BYTES),
        dtype,
        setup: setup.clone(),
        methods,
    };
    plan.compare(&evaluation, &results)?;
    let jobs = plan.jobs(&evaluation, &results)?;
    let unanswered = jobs.iter().flat_map(|job| &job.unanswered);
    let count = unanswered.map(|(_, methods)| methods.len()).sum();
    let resumed = results.records().len();
    let bar = progress::answers(count, out);
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
            "interrupted; {} answers are in {}, and the same command continues from there",
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
            generated: self.generated,
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

/// Returns the name of a model in records: a hub ID, or the last part of a path, so that records do
/// not contain the folders of a machine.
fn label(source: &ModelSource) -> String {
    match &source.place {
        None => embedded::NAME.into(),
        Some(Place { path, name }) => match Path::new(name).exists() {
            true => path
                .canonicalize()
                .ok()
                .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .unwrap_or_else(|| name.clone()),
            false => name.clone(),
        },
    }
}
