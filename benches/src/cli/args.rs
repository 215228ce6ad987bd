//! Arguments that several subcommands share, and output to the terminal.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sparq::ops::BlockFormat;
use sparq_device::DeviceChoice;
use sparq_output::files::OutputFile;

/// The device to measure.
#[derive(Args, Debug)]
pub struct DeviceArgs {
    /// Device to measure, if in this build: flex, ndarray, cuda[:N], vulkan[:N], wgpu[:N],
    /// metal[:N], rocm[:N]
    #[arg(
        long,
        env = "BURN_DEVICE",
        default_value = "flex",
        value_name = "NAME[:N]"
    )]
    pub device: DeviceChoice,
}

/// The report of a run.
#[derive(Args, Debug)]
pub struct OutputArgs {
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The measured commit [default: that of the repository in the current folder]
    #[arg(long, env = "SPARQ_COMMIT")]
    pub commit: Option<String>,
}

impl OutputArgs {
    /// Creates the file of `--json`.
    pub fn create(&self) -> Result<Option<OutputFile>> {
        Ok(self.json.as_deref().map(OutputFile::create).transpose()?)
    }
}

/// Returns an error unless the value is a number above 0.
pub fn check_positive(name: &str, value: Option<f64>) -> Result<()> {
    match value.filter(|value| !(value.is_finite() && *value > 0.0)) {
        Some(value) => bail!("{name}: expected a number above 0, found {value}"),
        None => Ok(()),
    }
}

/// Parses a number of at least 1.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|&size: &usize| size > 0);
    size.ok_or_else(|| format!("expected a number of at least 1, found {text:?}"))
}

/// The name of a model in a report: that of its folder or file.
pub fn model_name(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = full.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Parses one of the names of a type in JSON.
pub fn name_of<T: DeserializeOwned + Clone + Send + Sync + 'static>(
    names: impl IntoIterator<Item = &'static str>,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names)
        .try_map(|name| serde_json::from_value::<T>(Value::String(name)))
}

/// Writes to standard output.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    // The io::Error stays in the chain, where a closed pipe is detected.
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("standard output")
}

/// Returns the format of packed weights of this name, in any case.
pub fn parse_format(name: &str) -> Result<BlockFormat, String> {
    let is_named = |format: &BlockFormat| format.name().eq_ignore_ascii_case(name);
    let found = BlockFormat::ALL.into_iter().find(is_named);
    found.ok_or_else(|| {
        let names = BlockFormat::ALL.map(|format| format.name().to_lowercase());
        format!("expected one of {}", names.join(", "))
    })
}
