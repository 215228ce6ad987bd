//! `sparq generate`: continues a text, or answers in a conversation.

mod chat;
mod options;
mod report;

use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use sparq_device::DeviceChoice;
use sparq_models::DraftedLm;
use sparq_models::text::{
    ChatMessage, ChatTemplate, FinishReason, GenerateEvent, GenerateOptions, Generated, Session,
};

use crate::args::{DtypeArgs, ModelArgs, at_least_one};
use crate::clock;
use crate::exit::Outcome;
use crate::interrupt;
use crate::memory::MemoryArgs;
use crate::method::{DraftArgs, MethodArgs, MethodName};
use crate::model::{LoadedModel, ModelSource, read_text};
use crate::output::Output;
use crate::progress;
use options::SamplingArgs;
use report::{Report, Start};

/// The arguments of `sparq generate`.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("input").required(true).args(["prompt", "prompt_file", "chat"]))]
#[command(after_help = "\
The default method is auto: dense attention if that is faster, as at short contexts, else SparQ. With \
--method sparq, SparQ attends at any length above k. With --method lossless, it only drafts tokens, \
which dense attention verifies: the text is that of --method dense, faster at long contexts.

Ctrl-C ends the text after the current token; a second Ctrl-C ends the program at once.

Examples:
  sparq generate --prompt 'In the beginning' --max-new-tokens 64 --stats
  sparq generate --model DIR --chat 'What is the capital of France?'
  sparq generate --model org/name --chat
  sparq generate --model DIR --prompt-file book.txt --method sparq --rank 16 --top-k 256 --json
  sparq generate --model DIR --prompt-file book.txt --method lossless --stats")]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with the text to continue, or - for standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Message to answer, in the model's chat format. Without a text, a conversation on the
    /// terminal
    #[arg(long, value_name = "TEXT", num_args = 0..=1)]
    chat: Option<Option<String>>,
    /// Instructions for the whole conversation
    #[arg(
        long,
        value_name = "TEXT",
        requires = "chat",
        allow_hyphen_values = true
    )]
    system: Option<String>,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    draft: DraftArgs,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    /// Number of prompt tokens per prefill pass. Ctrl-C takes effect between two passes [default:
    /// 2048 on CPUs, 8192 on GPUs]
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    prefill_chunk: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Launch every kernel of every decode step. By default, devices with graphs capture the first
    /// step and replay it
    #[arg(long)]
    no_graph: bool,
    /// Print time and traffic to standard error after the text
    #[arg(long)]
    stats: bool,
}

/// The session, model and options of all turns.
struct Writer<'a> {
    session: Session,
    loaded: &'a LoadedModel,
    options: GenerateOptions,
    out: Output,
}

/// Generates text.
pub fn run(args: &GenerateArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    if out.is_json() && matches!(args.chat, Some(None)) {
        bail!(
            "--chat: expected a message with --json, found none; a conversation is not a JSON document"
        );
    }
    let source = args.model.source(None)?;
    let description = source.describe()?;
    let method = args
        .method
        .method(MethodName::Auto, &description, &device.open())?;
    let dtype = args.dtype.of(description.stored_float, device);
    let speculative = args
        .method
        .speculative(&args.draft, &description, &device.open())?;
    let mut options = args.sampling.options(method)?;
    options.speculative = speculative;
    options.capture = !args.no_graph;
    let chunk = || GenerateOptions::prefill_chunk_of(device.is_gpu());
    options.prefill_chunk = args.prefill_chunk.unwrap_or_else(chunk);
    options.cancel = interrupt::install()?;
    let template = if args.chat.is_some() {
        Some(chat_template(&source)?)
    } else {
        None
    };
    let input = args.read_prompt()?;

    let tokenizer = source.tokenizer()?;
    let tokens = match (&input, &template) {
        (Some(prompt), None) => tokenizer.encode(prompt, true)?,
        (Some(message), Some(template)) => {
            let messages: Vec<ChatMessage> =
                args.opening().chain([ChatMessage::user(message)]).collect();
            tokenizer.encode(&template.render(&messages, true)?, false)?
        }
        (None, _) => Vec::new(),
    };
    let wanted = tokens.len().saturating_add(options.max_new_tokens);
    // The cache has all positions from the start: one that grows is copied, and exists twice
    // meanwhile.
    let capacity = wanted.min(description.context);
    let cached = speculative.map_or(method, |config| config.cache_method());
    let drafting = args.draft.draft_model.as_deref();
    let drafting = drafting.map(|name| ModelSource::find(Some(name)));
    let drafting = drafting.transpose().context("--draft-model")?;
    let mut demand = source.demand(device, dtype, cached)?;
    if let Some(drafting) = &drafting {
        let more = drafting.demand(device, dtype, cached)?.memory().weights;
        let weights = demand.memory().weights + more;
        demand = demand.with_weight_bytes(weights);
    }
    let demand = demand
        .with_positions(capacity)
        .with_chunk(options.prefill_chunk);
    args.memory.check(&demand, dtype, device)?;
    let loading = clock::elapsed();
    let mut loaded = source.load(&device.open(), dtype)?;
    if let Some(drafting) = drafting {
        let drafting = drafting.load(&device.open(), dtype)?.model;
        loaded.model = Box::new(DraftedLm::new(loaded.model, drafting)?);
    }
    let load_time = clock::elapsed() - loading;
    let cache = loaded.model.new_cache(1, capacity, dtype, &cached)?;
    let mut writer = Writer {
        session: Session::new(cache, tokenizer),
        loaded: &loaded,
        options,
        out,
    };
    if let (None, Some(template)) = (&input, &template) {
        return chat::talk(&mut writer, template, args.opening().collect(), args.stats);
    }
    let reading = clock::elapsed();
    let generated = writer.generate(&tokens)?;
    out.line("")?;
    let report = Report::new(
        Start::new(load_time, reading + generated.prefill_time),
        &generated,
        &loaded.description,
        &writer.options,
        device,
        dtype,
    );
    if args.stats {
        eprint!("{}", report.stats());
    }
    let outcome = if generated.finish == FinishReason::Cancelled {
        Outcome::Interrupted
    } else {
        Outcome::Done
    };
    out.document(&report)?;
    Ok(outcome)
}

impl GenerateArgs {
    /// Reads the prompt or message. Returns `None` for a conversation on the terminal.
    fn read_prompt(&self) -> Result<Option<String>> {
        match (&self.prompt, &self.prompt_file, &self.chat) {
            (Some(text), ..) => Ok(Some(text.clone())),
            (_, Some(path), _) => read_prompt(path).map(Some),
            (_, _, Some(message)) => Ok(message.clone()),
            (None, None, None) => Ok(None),
        }
    }

    /// Returns the messages before the first one of the user.
    fn opening(&self) -> impl Iterator<Item = ChatMessage> {
        self.system.iter().map(ChatMessage::system)
    }
}

impl Writer<'_> {
    /// Generates the text after the tokens, and streams it.
    fn generate(&mut self, tokens: &[u32]) -> Result<Generated> {
        let out = self.out;
        let (mut failed, mut bar) = (None, None);
        let mut on_event = |event: GenerateEvent<'_>| {
            let written = match event {
                GenerateEvent::Prefill { done, total } => {
                    let bar = bar.get_or_insert_with(|| progress::reading(total, out));
                    bar.set_position(done as u64);
                    if done == total {
                        bar.finish_and_clear();
                    }
                    Ok(())
                }
                GenerateEvent::Text(text) => out.text(text),
            };
            match written {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        let generated = self.session.generate(
            self.loaded.model.as_ref(),
            tokens,
            &self.options,
            &mut on_event,
        );
        match failed {
            Some(error) => Err(error),
            None => Ok(generated?),
        }
    }
}

fn read_prompt(path: &Path) -> Result<String> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .lock()
            .read_to_string(&mut text)
            .context("standard input: expected text in UTF-8")?;
        return Ok(text);
    }
    read_text(path)
}

fn chat_template(source: &ModelSource) -> Result<ChatTemplate> {
    let missing = || {
        format!(
            "{source}: expected a chat template (chat_template.jinja, or in tokenizer_config.json, or \
             tokenizer.chat_template of a GGUF file), found none; use --prompt"
        )
    };
    source.chat_template()?.with_context(missing)
}
