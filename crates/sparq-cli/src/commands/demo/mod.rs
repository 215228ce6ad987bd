//! `sparq demo`: answers questions about a long text with dense attention and SparQ, side by side.

mod comparison;
mod view;

use anyhow::{Context, Result, bail};
use clap::Args;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::Serialize;
use sparq::cost::CacheMemory;
use sparq::{Method, RowFormat, Sketch, SparqConfig};
use sparq_device::DeviceChoice;
use sparq_eval::haystack::{Depths, Haystack, MAX_NEEDLES, Needle};
use sparq_eval::prose::{BIBLE, Prose};
use sparq_output::numbers;
use sparq_output::table::Table;

use crate::args::{DtypeArgs, at_least_one, dtype_name, whole};
use crate::exit::Outcome;
use crate::method::{SparqArgs, sketch_parser};
use crate::model::{Description, ModelSource, element_bytes};
use crate::output::{Mark, Output};
use comparison::{Comparison, Tally};
use view::AnswerLine;

/// The arguments of `sparq demo`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The text is read once with dense attention, as in the paper, and so is each question except its last \
token. From that token on, each method decodes its answer. All methods start from the same cache.

Examples:
  sparq demo
  sparq demo --seed 7 --needles 4 --top-k 64
  sparq demo --context 2048 --sketch full --json")]
pub struct DemoArgs {
    /// Seed of the text and its hidden facts
    #[arg(long, default_value_t = 0, value_parser = whole::<u64>)]
    seed: u64,
    /// Length of text, question and answer in bytes. A byte is a token of the embedded model
    #[arg(long, default_value_t = 8192, value_parser = at_least_one, value_name = "BYTES")]
    context: usize,
    /// Number of facts hidden in the text
    #[arg(long, default_value_t = 5, value_parser = at_least_one, value_name = "N")]
    needles: usize,
    /// r: number of query components that approximate the scores [default: head_dim / 4]
    #[arg(long, value_name = "R", value_parser = whole::<usize>)]
    rank: Option<usize>,
    /// k: number of positions in exact attention [default: 128]
    #[arg(long, value_name = "K", value_parser = whole::<usize>)]
    top_k: Option<usize>,
    /// Storage of the key sketch, the copy of the keys for approximate scores
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
pub fn run(args: &DemoArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    if args.needles > MAX_NEEDLES {
        bail!(
            "--needles: expected 1 to {MAX_NEEDLES}, found {}",
            args.needles
        );
    }
    let dtype = args
        .dtype
        .of(ModelSource::EMBEDDED.describe()?.stored_float, device);
    let haystack = args.haystack()?;
    let loaded = ModelSource::EMBEDDED.load(&device.open(), dtype)?;
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
    let text = tokens(&haystack.text);

    out.line(&format!(
        "{} bytes of text hide {} facts; SparQ uses r = {}, k = {}",
        text.len(),
        haystack.needles.len(),
        config.rank,
        config.top_k
    ))?;
    let shape = loaded.description.cache_shape(element_bytes(dtype));
    let sketched = &methods[1];
    let mut comparison = Comparison::new(model, shape, &text, args.context, dtype, sketched, out)?;
    let prefill = Speed::new(text.len(), comparison.prefill.as_secs_f64());
    out.line(&format!(
        "read once in {:.1} s ({:.0} tokens/s), shared by both methods\n",
        prefill.seconds, prefill.tokens_per_second
    ))?;
    let tallies = answer_all(&mut comparison, methods, &haystack.needles, out)?;
    let reports = tallies.iter();
    let document = Document {
        seed: args.seed,
        context: args.context,
        device: device.to_string(),
        dtype: dtype_name(dtype),
        text_tokens: text.len(),
        sparq: config,
        prefill,
        cache_bytes: comparison.memory(),
        methods: reports
            .map(|tally| MethodReport::new(tally, &haystack.needles))
            .collect(),
    };
    print(&document, out)?;
    out.document(&document)?;
    Ok(Outcome::Done)
}

/// Returns the tokens of a text for the embedded model: its bytes.
fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// Answers every question with every method, and prints the answers.
fn answer_all(
    comparison: &mut Comparison<'_>,
    methods: [Method; 2],
    needles: &[Needle],
    out: Output,
) -> Result<[Tally; 2]> {
    AnswerLine::header(out, &methods.map(|method| method.name()))?;
    let mut tallies = methods.map(Tally::new);
    for needle in needles {
        let question = tokens(&needle.question());
        comparison.ask(&question)?;
        let mut line = AnswerLine::new(out, &needle.name, &needle.code);
        for tally in &mut tallies {
            comparison.answer(&question, needle, tally, &mut |text| line.push(text))?;
            line.end_column(match tally.answers.last() == Some(&needle.answer()) {
                true => Mark::Good,
                false => Mark::Bad,
            });
        }
        line.finish()?;
    }
    Ok(tallies)
}

impl DemoArgs {
    fn haystack(&self) -> Result<Haystack> {
        let prose = Prose::new(BIBLE, &ModelSource::EMBEDDED.tokenizer()?)?;
        let mut rng = SmallRng::seed_from_u64(self.seed);
        let depths = Depths::Random(self.needles);
        Haystack::new(&prose, &mut rng, self.context, 0, depths).context("--context")
    }

    fn config(&self, model: &Description) -> Result<SparqConfig> {
        SparqArgs {
            rank: self.rank,
            top_k: self.top_k,
            sketch: Some(self.sketch),
            // Dense attention reads the same cache.
            kv_rows: Some(RowFormat::Float),
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
    fn new(tally: &Tally, needles: &[Needle]) -> Self {
        let answer = |(needle, answer): (&Needle, &String)| Answer {
            right: *answer == needle.answer(),
            needle: needle.clone(),
            answer: answer.trim().to_owned(),
        };
        let answers: Vec<Answer> = needles.iter().zip(&tally.answers).map(answer).collect();
        Self {
            method: tally.method.name(),
            right: answers.iter().filter(|answer| answer.right).count(),
            questions: needles.len(),
            cache_bytes_per_token: tally.bytes_per_token(),
            share_of_dense: tally.share_of_dense(),
            decoded_tokens: tally.steps,
            decode_tokens_per_second: tally.tokens_per_second(),
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
            numbers::binary_bytes(method.cache_bytes_per_token),
            format!(
                "{:.1}% ({})",
                100.0 * method.share_of_dense,
                numbers::reciprocal(method.share_of_dense)
            ),
            format!("{:.0}", document.prefill.tokens_per_second),
            format!("{:.1}", method.decode_tokens_per_second),
        ]);
    }
    out.text(&format!("\n{}", table.text()))?;
    let memory = &document.cache_bytes;
    let plain = memory.keys + memory.values;
    out.line(&format!(
        "cache: {} of keys and values in {}; the sketch adds {} ({:.0}%)",
        numbers::binary_bytes(plain as f64),
        document.dtype,
        numbers::binary_bytes(memory.sketch as f64),
        100.0 * memory.sketch as f64 / plain.max(1) as f64,
    ))?;
    for method in &document.methods {
        let wrong = method.questions - method.right;
        if wrong > 0 {
            out.line(&format!("{} gave {wrong} wrong answers", method.method))?;
        }
    }
    Ok(())
}
