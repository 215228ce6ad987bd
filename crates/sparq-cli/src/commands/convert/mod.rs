//! `sparq convert`: converts a model to a folder that loads without conversion, and back.

mod calibrate;

use std::path::{Path, PathBuf};
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
use sparq_models::checkpoint::{Checkpoint, Conversion, Manifest, StoredType};
use sparq_models::progress::Progress;
use sparq_output::files::OutputFolder;
use sparq_output::numbers;

use crate::args::{at_least_one, share};
use crate::exit::Outcome;
use crate::interrupt;
use crate::method::SparqArgs;
use crate::model::{Description, ModelSource};
use crate::output::Output;
use calibrate::{CalibrateArgs, Measured};

/// The formats to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// Weights to map into memory, settings of attention, checksums
    Sparq,
    /// A Hugging Face checkpoint
    Safetensors,
}

/// The arguments of `sparq convert`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The folder gets its name when it is complete and verified. Until then it is called .sparq-*.part in \
the same parent folder. Tensors are converted one by one.

Without --dtype each tensor keeps its type, so --to safetensors gives back the source bit for bit; \
there, blocks of a GGUF file become f32. Products read q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k and \
q6_k as they are stored. Loading converts q8 and q4 to the type of the computation.

`sparq generate --model OUT` uses the stored settings of SparQ if its options give no others.

Examples:
  sparq convert org/name model --dtype q4_k
  sparq convert model.Q4_K_M.gguf model --rank 16 --top-k 128
  sparq convert DIR model --compression 1/8 --context 16384
  sparq convert DIR model --calibrate book.txt --keep 0.95
  sparq convert model checkpoint --to safetensors")]
pub struct ConvertArgs {
    /// Folder of a checkpoint or of a converted model, GGUF file, or ID on the Hugging Face Hub
    /// (org/name)
    #[arg(value_name = "DIR|FILE.gguf|HUB-ID")]
    source: String,
    /// Folder to write. It must not exist or be empty
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Format to write
    #[arg(long, value_enum, default_value = "sparq")]
    to: Format,
    /// Type of the weights. Those of 8 bits and fewer apply to matrices [default: the type of each
    /// tensor]
    #[arg(long, value_parser = stored_type_parser(), value_name = "TYPE")]
    dtype: Option<StoredType>,
    #[command(flatten)]
    sparq: SparqArgs,
    /// Store settings that read this share of dense attention's bytes, such as 1/8 or 0.125
    #[arg(
        long,
        value_parser = share,
        value_name = "SHARE",
        requires = "context",
        conflicts_with_all = ["rank", "top_k", "local_window", "calibrate"]
    )]
    compression: Option<f64>,
    /// Number of positions for --compression, or of tokens for --calibrate [default for
    /// --calibrate: at most 2048]
    #[arg(long, value_parser = at_least_one, value_name = "S")]
    context: Option<usize>,
    #[command(flatten)]
    calibration: CalibrateArgs,
}

#[derive(Serialize)]
struct Document {
    source: String,
    out: PathBuf,
    to: Format,
    attention: Option<SparqConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<Measured>,
    stored_types: Vec<String>,
    source_bytes: u64,
    bytes: u64,
    seconds: f64,
}

/// Converts the model.
///
/// # Errors
/// If the model cannot be read, the settings do not fit it, or the folder cannot be written.
pub fn run(args: &ConvertArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    let begin = Instant::now();
    let source = ModelSource::find(Some(&args.source))?;
    // Also refuses a model that could be converted but not run.
    let described = source.describe()?;
    let attention = args.attention(&described)?;
    args.check()?;
    if let Some(config) = attention.filter(|_| args.calibration.calibrate.is_none()) {
        described.check_anchors(&config.into())?;
    }
    let text = args.calibration.text(args.context, &source, &described)?;
    let folder = OutputFolder::create(&args.out)?;
    interrupt::remove_on_interrupt(folder.path().to_owned())?;

    args.write(&source, attention, device, folder.path())?;
    let written = ModelSource::at(folder.path(), args.out.display());
    // Reads the folder back and compares the checksums.
    written.checkpoint()?.verify()?;
    let measured = match &text {
        Some(text) => {
            let base = args.sparq.config(&described)?;
            let fixed = [args.sparq.rank.is_some(), args.sparq.top_k.is_some()];
            let model = written.load(&device.open(), FloatDType::F32)?;
            let measured = calibrate::run(text, args.calibration.keep, base, fixed, &model, out)?;
            let (config, sharing) = (measured.config(), measured.sharing().clone());
            Manifest::set_attention(folder.path(), config, measured.summary(), sharing)?;
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
    print(&document, out)?;
    out.document(&document)?;
    Ok(Outcome::Done)
}

fn print(document: &Document, out: Output) -> Result<()> {
    out.line(&format!(
        "{}: {} of weights in {}, in {:.1} s",
        document.out.display(),
        numbers::binary_bytes(document.bytes as f64),
        document.stored_types.join(" and "),
        document.seconds,
    ))?;
    if let Some(config) = document.attention {
        out.line(&format!(
            "attention: r = {}, k = {}, local window {}, rows {}",
            config.rank, config.top_k, config.local_window, config.rows
        ))?;
    }
    Ok(())
}

/// Returns the name of the output matrix if it is a copy of the embedding table, which some
/// programs store under both names.
fn tied_copy(checkpoint: &Checkpoint) -> Result<Option<String>> {
    let config = DecoderConfig::from_checkpoint(checkpoint)?;
    let [head, embed] = [config.keys.head, config.keys.embed].map(|key| format!("{key}.weight"));
    let has_both = head != embed && [&head, &embed].iter().all(|name| checkpoint.contains(name));
    let is_copy = config.tie_word_embeddings && has_both;
    Ok(is_copy.then_some(head))
}

impl ConvertArgs {
    /// Converts the tensors of `source` into `folder`.
    fn write(
        &self,
        source: &ModelSource,
        attention: Option<SparqConfig>,
        device: &DeviceChoice,
        folder: &Path,
    ) -> Result<()> {
        let checkpoint = Arc::new(source.checkpoint()?);
        // Checks that all tensors exist in the right shapes before reading any.
        let blank = checkpoint.blank()?;
        drop(source.build(&blank, &cpu(device), FloatDType::F32)?);
        // Some checkpoints store attention masks, in types that are never weights.
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
            .with_dtype(self.dtype)
            .with_attention(attention)
            .with_progress(move |bytes| progress.inc(bytes));
        match self.to {
            Format::Sparq => drop(conversion.write(folder)?),
            Format::Safetensors => conversion.write_safetensors(folder)?,
        }
        Ok(())
    }

    /// Checks that the options go together.
    fn check(&self) -> Result<()> {
        let settings = self.sparq.is_given()
            || self.compression.is_some()
            || self.calibration.calibrate.is_some();
        if self.to == Format::Safetensors && settings {
            bail!(
                "--to safetensors: expected no settings of SparQ, which a checkpoint cannot store, found some"
            );
        }
        let (in_blocks, plain): (Vec<_>, Vec<_>) =
            StoredType::written().partition(|(_, dtype)| dtype.is_quantized());
        let in_blocks = in_blocks
            .iter()
            .find(|(_, dtype)| self.dtype == Some(*dtype));
        if let (Format::Safetensors, Some((found, _))) = (self.to, in_blocks) {
            let names: Vec<&str> = plain.into_iter().map(|(name, _)| name).collect();
            bail!(
                "--dtype: expected one of {} with --to safetensors, found {found}",
                names.join(", ")
            );
        }
        if self.context.is_some()
            && self.compression.is_none()
            && self.calibration.calibrate.is_none()
        {
            bail!("--context: expected --compression or --calibrate with it, found neither");
        }
        Ok(())
    }

    /// Returns the settings to store: those given, or those of the source.
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

/// Returns the device for a model without weights, the CPU if this build has it.
fn cpu(device: &DeviceChoice) -> Device {
    let flex = "flex".parse::<DeviceChoice>();
    flex.map_or_else(|_| device.open(), |flex| flex.open())
}

/// Parses the name of a type that a conversion writes.
fn stored_type_parser() -> impl TypedValueParser<Value = StoredType> {
    let names = PossibleValuesParser::new(StoredType::written().map(|(name, _)| name));
    names.try_map(|name| {
        let found = StoredType::written().find(|(own, _)| *own == name);
        found
            .map(|(_, dtype)| dtype)
            .ok_or("expected a type that is written")
    })
}
