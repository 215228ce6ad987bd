//! `sparq demo`: dense attention and SparQ answer the same questions about a long text, side by side.

mod contest;
mod view;

use anyhow::{Context, Result, bail};
use clap::Args;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::Serialize;
use sparq::cost::CacheMemory;
use sparq::{Method, Sketch, SparqConfig};
use sparq_eval::haystack::{Depths, Haystack, MAX_NEEDLES, Needle};
use sparq_eval::prose::{BIBLE, Prose};

use crate::args::{DtypeArgs, at_least_one, dtype_name};
use crate::exit::Outcome;
use crate::method::{SparqArgs, sketch_parser};
use crate::model::{Description, ModelSource, element_bytes};
use crate::output::{Mark, Output};
use crate::progress;
use crate::table::Table;
use crate::units;
use contest::{Contest, Record};
use sparq_device::DeviceChoice;
use view::AnswerLine;

/// Arguments of `sparq demo`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The text is read once, densely, as in the paper; so is each question, all but its last token. From that token on every method decodes its answer
with its own attention, from the same cache, which is rolled back in between.

Examples:
  sparq demo
  sparq demo --seed 7 --needles 4 --top-k 64
  sparq demo --context 2048 --sketch full --json")]
pub struct DemoArgs {
    /// Seed of the text and its needles
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Length of text, question and answer in bytes, which are the tokens of the model inside the program
    #[arg(long, default_value_t = 8192, value_parser = at_least_one, value_name = "BYTES")]
    context: usize,
    /// Facts hidden in the text
    #[arg(long, default_value_t = 5, value_parser = at_least_one, value_name = "N")]
    needles: usize,
    /// r: components of the query that scores are approximated with [default: a quarter of head_dim]
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// k: positions attended to exactly [default: 128]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// How the copy of the keys that scores are read from is stored
    #[arg(long, value_parser = sketch_parser(), default_value = "4bits")]
    sketch: Sketch,
    #[command(flatten)]
    dtype: DtypeArgs,
}

#[derive(Serialize)]
struct Document {
    seed: u64,
    context: usize,
    device: String,
    dtype: &'static str,
    text_tokens: usize,
    sparq: SparqConfig,
    prefill: Speed,
    cache_bytes: CacheMemory,
    methods: Vec<MethodReport>,
}

#[derive(Serialize)]
struct Speed {
    tokens: usize,
    seconds: f64,
    tokens_per_second: f64,
}

#[derive(Serialize)]
struct MethodReport {
    method: &'static str,
    right: usize,
    questions: usize,
    cache_bytes_per_token: f64,
    share_of_dense: f64,
    decoded_tokens: usize,
    decode_tokens_per_second: f64,
    answers: Vec<Answer>,
}

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    needle: Needle,
    answer: String,
    right: bool,
}

/// Runs the demo.
///
/// # Errors
/// When the settings don't fit the model or the text.
pub fn run(args: &DemoArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    if args.needles > MAX_NEEDLES {
        bail!(
            "--needles: expected 1 to {MAX_NEEDLES}, found {}",
            args.needles
        );
    }
    let dtype = args.dtype.dtype;
    let haystack = args.haystack()?;
    let loaded = ModelSource::Embedded.load(&device.open(), dtype)?;
    let model = loaded.model.as_ref();
    if args.context > model.context_len() {
        bail!(
            "--context: expected at most {} (the model's context), found {}",
            model.context_len(),
            args.context
        );
    }
    let config = args.config(&loaded.description)?;
    let methods = [Method::DENSE, Method::from(config)];
    let tokens = |text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>();
    let text = tokens(&haystack.text);

    out.line(&format!(
        "{} bytes of text hide {} facts; SparQ uses r = {}, k = {}",
        text.len(),
        haystack.needles.len(),
        config.rank,
        config.top_k
    ))?;
    let bar = progress::reading(text.len(), out);
    let shape = loaded.description.cache_shape(element_bytes(dtype));
    let mut contest = Contest::new(
        model,
        shape,
        &text,
        args.context,
        dtype,
        &methods[1],
        &|done| bar.set_position(done as u64),
    )?;
    bar.finish_and_clear();
    let prefill = Speed::new(text.len(), contest.prefill.as_secs_f64());
    out.line(&format!(
        "read once in {:.1} s ({:.0} tokens/s), shared by both methods\n",
        prefill.seconds, prefill.tokens_per_second
    ))?;

    AnswerLine::header(out, &methods.map(|method| method.name()))?;
    let mut records = methods.map(Record::new);
    for needle in &haystack.needles {
        let question = tokens(&needle.question());
        contest.ask(&question)?;
        let mut line = AnswerLine::new(out, &needle.name, &needle.code);
        for record in &mut records {
            contest.answer(&question, needle, record, &mut |text| line.push(text))?;
            line.end_column(if record.answers.last() == Some(&needle.answer()) {
                Mark::Good
            } else {
                Mark::Bad
            });
        }
        line.finish()?;
    }
    let document = Document {
        seed: args.seed,
        context: args.context,
        device: device.to_string(),
        dtype: dtype_name(dtype),
        text_tokens: text.len(),
        sparq: config,
        prefill,
        cache_bytes: contest.memory(),
        methods: records
            .iter()
            .map(|record| MethodReport::new(record, &haystack.needles))
            .collect(),
    };
    print(&document, out)?;
    out.document(&document)?;
    Ok(Outcome::Done)
}

impl DemoArgs {
    fn haystack(&self) -> Result<Haystack> {
        let prose = Prose::new(BIBLE, &ModelSource::Embedded.tokenizer()?)?;
        let mut rng = SmallRng::seed_from_u64(self.seed);
        let depths = Depths::Random(self.needles);
        Haystack::new(&prose, &mut rng, self.context, 0, depths).context("--context")
    }

    fn config(&self, model: &Description) -> Result<SparqConfig> {
        SparqArgs {
            rank: self.rank,
            top_k: self.top_k,
            sketch: Some(self.sketch),
            ..SparqArgs::default()
        }
        .config(model)
    }
}

impl Speed {
    fn new(tokens: usize, seconds: f64) -> Self {
        Self {
            tokens,
            seconds,
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
        }
    }
}

impl MethodReport {
    fn new(record: &Record, needles: &[Needle]) -> Self {
        let answer = |(needle, answer): (&Needle, &String)| Answer {
            right: *answer == needle.answer(),
            needle: needle.clone(),
            answer: answer.trim().to_owned(),
        };
        let answers: Vec<Answer> = needles.iter().zip(&record.answers).map(answer).collect();
        Self {
            method: record.method.name(),
            right: answers.iter().filter(|answer| answer.right).count(),
            questions: needles.len(),
            cache_bytes_per_token: record.bytes_per_token(),
            share_of_dense: record.share_of_dense(),
            decoded_tokens: record.steps(),
            decode_tokens_per_second: record.tokens_per_second(),
            answers,
        }
    }
}

fn print(document: &Document, out: Output) -> Result<()> {
    let mut table = Table::new([
        "method",
        "right",
        "cache read per token",
        "share of dense",
        "tokens/s prefill",
        "tokens/s decode",
    ]);
    for method in &document.methods {
        table.row([
            method.method.to_owned(),
            format!("{} of {}", method.right, method.questions),
            units::bytes(method.cache_bytes_per_token),
            format!(
                "{:.1}% ({})",
                100.0 * method.share_of_dense,
                units::share(method.share_of_dense)
            ),
            format!("{:.0}", document.prefill.tokens_per_second),
            format!("{:.1}", method.decode_tokens_per_second),
        ]);
    }
    out.text(&format!("\n{}", table.render()))?;
    let memory = &document.cache_bytes;
    let plain = memory.keys + memory.values;
    out.line(&format!(
        "cache: {} of {} keys and values; the sketch adds {} ({:.0}%)",
        units::bytes(plain as f64),
        document.dtype,
        units::bytes(memory.sketch as f64),
        100.0 * memory.sketch as f64 / plain.max(1) as f64,
    ))?;
    for method in document
        .methods
        .iter()
        .filter(|method| method.right < method.questions)
    {
        out.line(&format!(
            "{} gave {} wrong answers",
            method.method,
            method.questions - method.right
        ))?;
    }
    Ok(())
}
