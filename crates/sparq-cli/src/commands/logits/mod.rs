//! `sparq logits`: the logits of given tokens, for comparison with another implementation.

mod tokens;
mod writer;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use sparq::Method;

use crate::args::{DtypeArgs, ModelArgs, dtype_name};
use crate::exit::Outcome;
use crate::interrupt;
use crate::method::{MethodArgs, MethodName};
use crate::model::{self, ModelSource};
use crate::output::Output;
use sparq_device::DeviceChoice;
use tokens::Tokens;
use writer::LogitsWriter;

/// Arguments of `sparq logits`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Without --method attention is dense: the logits are the model's own, and those of another method are asked for by name, sparq rather than auto, so
that every decoded position shows what it changes. Positions before --decode-from are read at once (densely, whatever the method), the others one by one.

Examples:
  sparq logits --tokens 72,101,108,108,111 --out logits.safetensors
  sparq logits --model DIR --tokens input.safetensors --out logits.safetensors --decode-from 16
  sparq logits --model DIR --tokens input.safetensors --out sparq.safetensors --decode-from 16 --method sparq --top-k 64")]
pub struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids with commas between them, or a safetensors file with `input_ids` [B, T] (I64 or I32)
    #[arg(long, value_name = "IDS|FILE.safetensors")]
    tokens: String,
    /// File to write `logits` [B, T, vocab] to, in F32
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    /// First position that is read by a single decode step [default: none]
    #[arg(long, value_name = "N")]
    decode_from: Option<usize>,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    dtype: DtypeArgs,
}

#[derive(Serialize)]
struct Document {
    model: String,
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
/// When the model or the tokens can't be read, don't fit each other, or the file can't be written.
pub fn run(args: &LogitsArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    let source = ModelSource::find(args.model.model.as_deref())?;
    // What a header tells is checked before the weights are read.
    let described = source.describe()?;
    let method = args
        .method
        .method(MethodName::Dense, &described, &device.open())?;
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

    if decode_from == tokens.len && method != Method::DENSE {
        tracing::warn!(
            "--method {} has no effect without --decode-from: what is read at once is read densely",
            method.name()
        );
    }

    // Without this, Ctrl-C would leave the unfinished file behind.
    let cancel = interrupt::install()?;
    let loaded = source.load(&device.open(), args.dtype.dtype)?;
    let model = loaded.model.as_ref();
    let begin = Instant::now();
    let mut cache = model.new_cache(tokens.batch, tokens.len, args.dtype.dtype, &method)?;
    for from in (0..decode_from).step_by(model::PIECE) {
        if cancel.is_cancelled() {
            return interrupted(out);
        }
        let to = (from + model::PIECE).min(decode_from);
        let piece = model::tensor(model, &tokens.columns(from, to), tokens.batch)?;
        file.write(
            from,
            &model::host(model.prefill(piece, &mut cache, to - from)?)?,
        )?;
    }
    for position in decode_from..tokens.len {
        if cancel.is_cancelled() {
            return interrupted(out);
        }
        let token = model::tensor(model, &tokens.columns(position, position + 1), tokens.batch)?;
        file.write(
            position,
            &model::host(model.decode(token, &mut cache, &method)?)?,
        )?;
    }
    file.finish()?;

    let document = Document {
        model: loaded.description.name,
        device: device.to_string(),
        dtype: dtype_name(args.dtype.dtype),
        method,
        out: args.out.clone(),
        shape,
        prefilled: decode_from,
        decoded: tokens.len - decode_from,
        seconds: begin.elapsed().as_secs_f64(),
    };
    out.line(&format!(
        "{}: logits {shape:?} in F32, {} positions by prefill and {} by {} decode steps",
        document.out.display(),
        document.prefilled,
        document.decoded,
        method.name(),
    ))?;
    out.document(&document)?;
    Ok(Outcome::Done)
}

fn interrupted(out: Output) -> Result<Outcome> {
    eprintln!("interrupted; nothing was written");
    out.document(&json!({ "error": "interrupted" }))?;
    Ok(Outcome::Interrupted)
}
