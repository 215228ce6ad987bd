//! `sparq convert`: a model in the form that loads at once, and back.

mod calibrate;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use burn::tensor::{Device, FloatDType};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde::Serialize;
use sparq::SparqConfig;
use sparq_device::DeviceChoice;
use sparq_models::DecoderConfig;
use sparq_models::checkpoint::{Checkpoint, Conversion, Manifest, StoredType, WeightType};
use sparq_models::progress::Progress;
use sparq_output::files::OutputFolder;

use crate::args::at_least_one;
use crate::exit::Outcome;
use crate::interrupt;
use crate::method::SparqArgs;
use crate::model::{Description, ModelSource};
use crate::output::Output;
use calibrate::{CalibrateArgs, Measured, Text};
use sparq_output::numbers;

/// The forms that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Form {
    /// Weights that are mapped into memory, the settings of attention, checksums
    Sparq,
    /// A Hugging Face checkpoint
    Safetensors,
}

/// Arguments of `sparq convert`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The folder takes its name when it is whole and has been read back; until then it is called .sparq-*.part and lies beside. Tensors are converted one by one. Without --dtype each keeps its type, so that --to safetensors gives back what was converted, bit for bit; blocks of a GGUF file become the f32 that they stand for. q8 and q4 make small files: a model that is loaded from one has its weights in the type that it computes in.

Settings of SparQ are written down for `sparq generate --model OUT`, which takes them where it is told nothing else.

Examples:
  sparq convert org/name model --dtype f16
  sparq convert model.Q4_K_M.gguf model --rank 16 --top-k 128
  sparq convert DIR model --compression 1/8 --context 16384
  sparq convert DIR model --calibrate book.txt --keep 0.95
  sparq convert model checkpoint --to safetensors")]
pub struct ConvertArgs {
    /// Folder of a checkpoint or of a converted model, GGUF file, or id on the hub (org/name)
    #[arg(value_name = "DIR|FILE.gguf|HUB-ID")]
    source: String,
    /// Folder to write, which is not there yet or is empty
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value = "sparq")]
    to: Form,
    /// Type of the weights; q8 and q4 are for matrices [default: that of each tensor]
    #[arg(long, value_parser = weight_type_parser(), value_name = "TYPE")]
    dtype: Option<WeightType>,
    #[command(flatten)]
    sparq: SparqArgs,
    /// Settings that read this share of dense attention's bytes, as 1/8 or 0.125
    #[arg(long, value_parser = share, value_name = "SHARE", requires = "context", conflicts_with_all = ["rank", "top_k", "local_window", "calibrate"])]
    compression: Option<f64>,
    /// Length of the context that --compression is counted for, or of the text that --calibrate takes (there at most 2048 if it is not given)
    #[arg(long, value_parser = at_least_one, value_name = "S")]
    context: Option<usize>,
    #[command(flatten)]
    calibration: CalibrateArgs,
}

#[derive(Serialize)]
struct Document {
    source: String,
    out: PathBuf,
    to: Form,
    attention: Option<SparqConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<Measured>,
    stored_types: Vec<String>,
    source_bytes: u64,
    bytes: u64,
    seconds: f64,
}

/// Converts.
///
/// # Errors
/// When the model can't be read, the settings don't fit it, or the folder can't be written.
pub fn run(args: &ConvertArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    let begin = Instant::now();
    let source = ModelSource::find(Some(&args.source))?;
    // Also refuses a model that could be converted and then not be run.
    let described = source.describe()?;
    let attention = args.attention(&described)?;
    args.check()?;
    let text = match &args.calibration.calibrate {
        Some(path) => Some(Text::read(path, args.context, &source, described.context)?),
        None => None,
    };
    let folder = OutputFolder::create(&args.out)?;
    interrupt::remove_on_interrupt(folder.path().to_owned())?;

    let checkpoint = Arc::new(source.checkpoint()?);
    // Whether all tensors are there in the shapes that the model wants, before any is read.
    let blank = checkpoint.blank()?;
    drop(source.build(&blank, &cpu(device), FloatDType::F32)?);
    // Masks of an older time are no weights, and of types that are not read.
    let is_weight = |name: &str| {
        let entry = checkpoint.entry(name);
        entry.is_none_or(|entry| !matches!(entry.dtype, StoredType::Other(_)))
    };
    let left_out = blank.unused().filter(|name| !is_weight(name));
    let mut left_out: Vec<String> = left_out.map(str::to_owned).collect();
    left_out.extend(tied_copy(&checkpoint)?);
    let progress = Progress::bytes("Converting", checkpoint.num_bytes());
    let conversion = Conversion::new(checkpoint)
        .without(left_out)
        .with_dtype(args.dtype)
        .with_attention(attention)
        .with_progress(move |bytes| progress.inc(bytes));
    match args.to {
        Form::Sparq => drop(conversion.write(folder.path())?),
        Form::Safetensors => conversion.write_safetensors(folder.path())?,
    }
    drop(conversion);
    let written = ModelSource::Folder {
        path: folder.path().to_owned(),
        name: args.out.display().to_string(),
    };
    // What the disk has now is what was meant.
    written.checkpoint()?.verify()?;
    let measured = match &text {
        Some(text) => {
            let base = args.sparq.config(&described)?;
            let fixed = [args.sparq.rank.is_some(), args.sparq.top_k.is_some()];
            let model = written.load(&device.open(), FloatDType::F32)?;
            let measured = calibrate::run(text, args.calibration.keep, base, fixed, &model, out)?;
            Manifest::set_attention(folder.path(), measured.config(), measured.summary())?;
            measured.print(out)?;
            Some(measured)
        }
        None => None,
    };
    let description = written.describe()?;
    folder.finish()?;

    let document = Document {
        source: args.source.clone(),
        out: args.out.clone(),
        to: args.to,
        attention: description.attention,
        calibration: measured,
        stored_types: description.stored_types,
        source_bytes: described.weight_bytes,
        bytes: description.weight_bytes,
        seconds: begin.elapsed().as_secs_f64(),
    };
    out.line(&format!(
        "{}: {} of weights in {}, in {:.1} s",
        args.out.display(),
        numbers::binary_bytes(document.bytes as f64),
        document.stored_types.join(" and "),
        document.seconds,
    ))?;
    if let Some(SparqConfig {
        rank,
        top_k,
        local_window,
        ..
    }) = document.attention
    {
        out.line(&format!(
            "attention: r = {rank}, k = {top_k}, local window {local_window}"
        ))?;
    }
    out.document(&document)?;
    Ok(Outcome::Done)
}

/// The output projection, where it is the embedding table and PyTorch has written that under both names.
fn tied_copy(checkpoint: &Checkpoint) -> Result<Option<String>> {
    let config = DecoderConfig::from_checkpoint(checkpoint)?;
    let [head, embed] = [config.keys.head, config.keys.embed].map(|key| format!("{key}.weight"));
    let is_copy = config.tie_word_embeddings && checkpoint.are_one(&head, &embed);
    Ok(is_copy.then_some(head))
}

impl ConvertArgs {
    /// Refuses what does not go together.
    fn check(&self) -> Result<()> {
        let settings = self.sparq.is_given()
            || self.compression.is_some()
            || self.calibration.calibrate.is_some();
        if self.to == Form::Safetensors && settings {
            bail!(
                "--to safetensors: expected no settings of SparQ, which a checkpoint has no place for, found some"
            );
        }
        let in_blocks = matches!(self.dtype, Some(WeightType::Q8 | WeightType::Q4));
        if self.to == Form::Safetensors && in_blocks {
            bail!("--dtype: expected f32, f16 or bf16 with --to safetensors, found q8 or q4");
        }
        if self.context.is_some()
            && self.compression.is_none()
            && self.calibration.calibrate.is_none()
        {
            bail!("--context: expected --compression or --calibrate with it, found neither");
        }
        Ok(())
    }

    /// The settings to write down, checked: those asked for, or else those that the source has.
    fn attention(&self, model: &Description) -> Result<Option<SparqConfig>> {
        if !self.sparq.is_given() && self.compression.is_none() {
            return Ok(model.attention);
        }
        let config = self.sparq.config(model)?;
        Ok(Some(match (self.compression, self.context) {
            (Some(share), Some(context)) => {
                config.for_compression(model.head_dim, model.attended(context), share)?
            }
            _ => config,
        }))
    }
}

/// Where a model without weights costs nothing.
fn cpu(device: &DeviceChoice) -> Device {
    let flex = "flex".parse::<DeviceChoice>();
    flex.map_or_else(|_| device.open(), |flex| flex.open())
}

/// Parses the name of a type.
fn weight_type_parser() -> impl TypedValueParser<Value = WeightType> {
    PossibleValuesParser::new(["f32", "f16", "bf16", "q8", "q4"]).map(|name| match name.as_str() {
        "f16" => WeightType::F16,
        "bf16" => WeightType::BF16,
        "q8" => WeightType::Q8,
        "q4" => WeightType::Q4,
        _ => WeightType::F32,
    })
}

/// Parses a share, as 1/8 or 0.125.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let share = match text.split_once('/') {
        Some((part, whole)) => number(part)
            .zip(number(whole))
            .map(|(part, whole)| part / whole),
        None => number(text),
    };
    let share = share.filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| {
        format!("expected a share above 0 and at most 1, as 1/8 or 0.125, found {text:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_fraction_or_a_number() {
        assert_eq!(share("1/8"), Ok(0.125));
        assert_eq!(share("0.125"), Ok(0.125));
        assert_eq!(share("1"), Ok(1.0));
        for text in ["", "0", "2", "1/0", "-1/8", "1/", "eighth", "nan"] {
            assert!(share(text).is_err(), "{text}");
        }
    }
}
