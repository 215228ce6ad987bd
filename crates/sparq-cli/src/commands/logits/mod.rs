//! `sparq logits`: writes the logits of given tokens, to compare with another implementation.

mod tokens;
mod writer;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use burn::tensor::FloatDType;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use sparq::Method;
use sparq_device::DeviceChoice;
use sparq_eval::steps::{self, PIECE};
use sparq_models::CausalLm;
use sparq_models::text::CancelToken;

use crate::args::{DtypeArgs, ModelArgs, dtype_name, whole};
use crate::exit::Outcome;
use crate::interrupt;
use crate::memory::MemoryArgs;
use crate::method::{MethodArgs, MethodName};
use crate::model::ModelSource;
use crate::output::Output;
use tokens::Tokens;
use writer::LogitsWriter;

/// The arguments of `sparq logits`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The default method is dense. To see the effect of SparQ at every decoded position, use --method sparq \
rather than auto. Positions before --decode-from are read in one prefill, with dense attention for any \
method. The others are decoded one by one.

Examples:
  sparq logits --tokens 72,101,108,108,111 --out logits.safetensors
  sparq logits --model DIR --tokens 1,2,3,4 --out dense.safetensors --decode-from 2
  sparq logits --model DIR --tokens 1,2,3,4 --out sparq.safetensors --decode-from 2 --method sparq")]
pub struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Token IDs separated by commas, or a safetensors file with `input_ids` [B, T] (I64 or I32)
    #[arg(long, value_name = "IDS|FILE.safetensors", allow_hyphen_values = true)]
    tokens: String,
    /// File to write `logits` [B, T, vocab] to, as F32
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    /// First position to decode one by one [default: none]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    decode_from: Option<usize>,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    memory: MemoryArgs,
}

#[derive(Serialize)]
struct Document {
    model: ModelSource,
    device: String,
    dtype: &'static str,
    #[serde(flatten)]
    method: Method,
    out: PathBuf,
    /// [B, T, vocab].
    shape: [usize; 3],
    prefilled: usize,
    decoded: usize,
    seconds: f64,
}

/// Writes the logits.
///
/// # Errors
/// If the model or the tokens cannot be read or do not fit each other, or the file cannot be
/// written.
pub fn run(args: &LogitsArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    let source = args.model.source(None)?;
    // Checks everything that needs no weights first.
    let described = source.describe()?;
    let method = args
        .method
        .method(MethodName::Dense, &described, &device.open())?;
    let dtype = args.dtype.of(described.stored_float, device);
    let tokens = Tokens::read(&args.tokens, described.vocab_size)?;
    if tokens.len > described.context {
        bail!(
            "--tokens: expected at most {} tokens (the model's context), found {}",
            described.context,
            tokens.len
        );
    }
    let decode_from = args.decode_from.unwrap_or(tokens.len);
    if decode_from > tokens.len {
        bail!(
            "--decode-from: expected at most {} (the number of tokens), found {decode_from}",
            tokens.len
        );
    }
    let shape = [tokens.batch, tokens.len, described.vocab_size];
    let mut file = LogitsWriter::create(&args.out, shape)?;

    if decode_from == tokens.len && !matches!(method, Method::Dense(_)) {
        tracing::warn!(
            "--method {} has no effect without --decode-from: a prefill uses dense attention",
            method.name()
        );
    }

    // The handler lets Ctrl-C remove the unfinished file.
    let cancel = interrupt::install()?;
    let demand = source.demand(device, dtype, method)?;
    let demand = demand
        .with_batch(tokens.batch)
        .with_positions(tokens.len)
        .with_chunk(PIECE);
    args.memory.check(&demand, dtype, device)?;
    let loaded = source.load(&device.open(), dtype)?;
    let begin = Instant::now();
    let computation = Computation {
        model: loaded.model.as_ref(),
        tokens: &tokens,
        decode_from,
        method,
        cancel,
    };
    if !computation.run(dtype, &mut file)? {
        eprintln!("interrupted; nothing was written");
        out.document(&json!({ "error": "interrupted" }))?;
        return Ok(Outcome::Interrupted);
    }
    file.finish()?;

    let document = Document {
        model: loaded.description.name,
        device: device.to_string(),
        dtype: dtype_name(dtype),
        method,
        out: args.out.clone(),
        shape,
        prefilled: decode_from,
        decoded: tokens.len - decode_from,
        seconds: begin.elapsed().as_secs_f64(),
    };
    out.line(&format!(
        "{}: logits {shape:?} in F32, {} positions by prefill and {} by decode steps with {}",
        document.out.display(),
        document.prefilled,
        document.decoded,
        method.name(),
    ))?;
    out.document(&document)?;
    Ok(Outcome::Done)
}

/// The logits to compute.
struct Computation<'a> {
    model: &'a dyn CausalLm,
    tokens: &'a Tokens,
    decode_from: usize,
    method: Method,
    cancel: CancelToken,
}

impl Computation<'_> {
    /// Computes the logits and writes them to the file. Returns false if interrupted.
    fn run(&self, dtype: FloatDType, file: &mut LogitsWriter<'_>) -> Result<bool> {
        let Tokens { batch, len, .. } = *self.tokens;
        let mut cache = self.model.new_cache(batch, len, dtype, &self.method)?;
        let prefills = (0..self.decode_from).step_by(PIECE);
        let prefills = prefills.map(|from| from..(from + PIECE).min(self.decode_from));
        let decodes = (self.decode_from..len).map(|position| position..position + 1);
        for span in prefills.chain(decodes) {
            if self.cancel.is_cancelled() {
                return Ok(false);
            }
            let (from, count) = (span.start, span.len());
            let input = steps::tensor(self.model, &self.tokens.columns(span), batch)?;
            let logits = match from < self.decode_from {
                true => self.model.prefill(input, &mut cache, count)?,
                false => self.model.decode(input, &mut cache, &self.method)?,
            };
            file.write(from, &steps::host(logits)?)?;
        }
        Ok(true)
    }
}
