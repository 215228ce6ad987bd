//! The command line.

use burn::tensor::FloatDType;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::commands::attention::AttentionArgs;
use crate::commands::check::CheckArgs;
use crate::commands::completions::CompletionsArgs;
use crate::commands::convert::ConvertArgs;
use crate::commands::demo::DemoArgs;
use crate::commands::eval::EvalArgs;
use crate::commands::generate::GenerateArgs;
use crate::commands::inspect::InspectArgs;
use crate::commands::logits::LogitsArgs;
use crate::commands::plan::PlanArgs;
use crate::commands::report::ReportArgs;
use crate::exit;
use sparq_device::DeviceChoice;

const EXAMPLES: &str = "\
Examples:
  sparq                                        the demo: dense and SparQ side by side
  sparq demo --seed 7 --needles 4              the same with another text
  sparq generate --prompt 'In the beginning' --stats
  sparq generate --model DIR --prompt-file question.txt --method sparq --rank 32 --top-k 128
  sparq eval --task needle --methods dense,sparq --budgets 1/8 --out runs/needle.jsonl
  sparq inspect DIR --sketch 4bits             what a model's cache costs and what SparQ saves
  sparq logits --model DIR --tokens 1,2,3 --out logits.safetensors
  sparq convert org/name DIR --dtype f16       a folder that loads at once
  sparq plan DIR --machine H100 --batch 8      what a step of it costs there
  sparq report runs.jsonl --out report.html    tables and figures of an evaluation
  sparq check --device flex                    hold this machine to the reference cases";

/// Decode language models with SparQ attention, which reads a fraction of the KV cache.
///
/// Without a subcommand the demo starts; without --model every command uses the small model inside the program.
#[derive(Parser, Clone, Debug)]
#[command(name = "sparq", version, after_help = format!("{EXAMPLES}\n\n{}", exit::HELP))]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do; the demo if nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Arguments of every command.
#[derive(Args, Clone, Debug)]
pub struct GlobalArgs {
    /// Print one JSON document on standard output and nothing else there (an error is {"error": ...})
    #[arg(long, global = true)]
    pub json: bool,
    /// Device to compute on: flex, ndarray, cuda[:N], vulkan[:N], wgpu[:N], metal[:N], rocm[:N], of which a build has some
    #[arg(
        long,
        global = true,
        env = "BURN_DEVICE",
        default_value = "flex",
        value_name = "NAME[:N]"
    )]
    pub device: DeviceChoice,
    /// Log more to standard error (-v what is done, -vv details); RUST_LOG does the same in the finer form
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The commands.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Dense and SparQ answer the same questions about a long text, side by side
    Demo(DemoArgs),
    /// What a model can still do with each method: tasks with scores, standard errors and differences to dense attention
    Eval(EvalArgs),
    /// Continue a text, or answer in a conversation
    Generate(GenerateArgs),
    /// What a model is, what its cache costs, and the settings of SparQ for a budget
    Inspect(InspectArgs),
    /// Write the logits of given tokens to a file, to compare with another implementation
    Logits(LogitsArgs),
    /// Write a model in a form that loads at once, with its settings of attention, or back as safetensors
    Convert(ConvertArgs),
    /// What a model's decode steps cost on a machine, without running them: time, memory, and the batch that fits
    Plan(PlanArgs),
    /// Where the attention of a text's last token lies, and which positions methods read
    Attention(AttentionArgs),
    /// Make a page with tables and figures of results of evaluation
    Report(ReportArgs),
    /// Hold a device to the reference cases of SparQ attention
    Check(CheckArgs),
    /// Print a script that completes this program's arguments in a shell
    Completions(CompletionsArgs),
}

/// Which model.
#[derive(Args, Clone, Debug, Default)]
pub struct ModelArgs {
    /// Folder of a Hugging Face checkpoint or of a converted model, GGUF file, or id on the hub (org/name); without it, the model inside the program
    #[arg(long, value_name = "DIR|FILE.gguf|HUB-ID")]
    pub model: Option<String>,
}

/// The type that weights and cache are held in.
#[derive(Args, Clone, Copy, Debug)]
pub struct DtypeArgs {
    /// Type of weights and cache
    #[arg(long, value_parser = dtype_parser(), default_value = "f32", value_name = "TYPE")]
    pub dtype: FloatDType,
}

/// Parses the name of a type.
pub fn dtype_parser() -> impl TypedValueParser<Value = FloatDType> {
    PossibleValuesParser::new(["f32", "f16", "bf16"]).map(|name| match name.as_str() {
        "f16" => FloatDType::F16,
        "bf16" => FloatDType::BF16,
        _ => FloatDType::F32,
    })
}

/// A type's name as it is on the command line.
pub fn dtype_name(dtype: FloatDType) -> &'static str {
    match dtype {
        FloatDType::F64 => "f64",
        FloatDType::F32 | FloatDType::Flex32 => "f32",
        FloatDType::F16 => "f16",
        FloatDType::BF16 => "bf16",
    }
}

/// Parses one of `names` into the value that serde gives this name, so that command line and JSON spell a setting alike (but for `-` and `_`).
pub fn named<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names)
        .try_map(|name| serde_json::from_value::<T>(Value::String(name.replace('-', "_"))))
}

/// A number of at least 1.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) | Err(_) => Err(format!("expected a number of at least 1, found {text:?}")),
        Ok(number) => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }
}
