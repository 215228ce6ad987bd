//! [`Cli`]: the command line and its commands.

use std::ffi::OsString;

use anyhow::Result;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use sparq_device::DeviceChoice;

use crate::commands::{
    attention, cache, check, completions, convert, demo, eval, generate, inspect, logits, plan,
    report, serve,
};
use crate::compiling;
use crate::exit::{self, Outcome};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  sparq                                        run the demo: dense and SparQ side by side
  sparq demo --seed 7 --needles 4              run the demo on another text
  sparq generate --prompt 'In the beginning' --stats
  sparq generate --model DIR --prompt-file question.txt --method sparq --rank 32 --top-k 128
  sparq eval --task needle --methods dense,sparq --budgets 1/8 --out runs/needle.jsonl
  sparq inspect DIR --sketch 4bits             show the cache of a model and the savings of SparQ
  sparq logits --model DIR --tokens 1,2,3 --out logits.safetensors
  sparq convert org/name DIR --dtype f16       write a folder that loads without conversion
  sparq plan DIR --machine H100 --batch 8      predict the cost of a decode step on a machine
  sparq serve --model org/name                 answer requests of OpenAI's API, many at a time
  sparq report runs.jsonl --out report.html    show results as tables and figures
  sparq check --device flex                    compare this machine with the reference cases";

/// Decode language models with SparQ attention, which reads a fraction of the KV cache.
///
/// Without a command, the demo runs. Without --model, commands use the embedded model, a small
/// Llama that is part of the program.
#[derive(Parser, Clone, Debug)]
#[command(name = "sparq", version, after_help = format!("{EXAMPLES}\n\n{}", exit::HELP))]
pub struct Cli {
    /// The arguments of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The command. The demo if there is none.
    #[command(subcommand)]
    command: Option<Command>,
}

/// The arguments of every command.
#[derive(Args, Clone, Debug)]
pub struct GlobalArgs {
    /// Print one JSON document, and nothing else, on standard output. An error is {"error": ...}
    #[arg(long, global = true)]
    pub json: bool,
    /// Device to compute on: flex, ndarray, cuda[:N], vulkan[:N], wgpu[:N], metal[:N] or rocm[:N].
    /// A build has some of them
    #[arg(
        long,
        global = true,
        env = "BURN_DEVICE",
        default_value = "flex",
        value_name = "NAME[:N]"
    )]
    pub device: DeviceChoice,
    /// Log more to standard error: -v progress, -vv details. RUST_LOG allows finer filters
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The commands.
#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Answer questions about a long text with dense attention and SparQ, side by side
    Demo(demo::DemoArgs),
    /// Evaluate methods on tasks: scores, standard errors and differences to dense attention
    Eval(eval::EvalArgs),
    /// Continue a text, or answer in a conversation
    Generate(generate::GenerateArgs),
    /// Answer requests over HTTP with OpenAI's API, many at a time
    Serve(serve::ServeArgs),
    /// Describe a model, the cost of its cache, and the settings of SparQ for a budget
    Inspect(inspect::InspectArgs),
    /// Write the logits of given tokens to a file, to compare with another implementation
    Logits(logits::LogitsArgs),
    /// Convert a model to a folder that loads without conversion, with its attention settings, or
    /// back
    Convert(convert::ConvertArgs),
    /// Predict decode steps of a model on a machine: time, memory, and the batch that fits
    Plan(plan::PlanArgs),
    /// Show the attention of a text's last token by position, and the positions that methods read
    Attention(attention::AttentionArgs),
    /// Make a page with tables and figures from results
    Report(report::ReportArgs),
    /// Compare a device with the reference cases of SparQ attention
    Check(check::CheckArgs),
    /// Show or delete the compiled kernels and tuning results that are kept on disk
    Cache(cache::CacheArgs),
    /// Print a script that completes the arguments of this program in a shell
    Completions(completions::CompletionsArgs),
}

impl Cli {
    /// Parses the arguments. Without a command, appends `demo`.
    ///
    /// # Errors
    /// If the arguments are invalid, or ask for the help or the version.
    pub fn from_arguments(mut arguments: Vec<OsString>) -> Result<Self, clap::Error> {
        let parse = |arguments: &[OsString]| {
            let mut command = with_negative_numbers(Self::command());
            let matches = command.try_get_matches_from_mut(arguments)?;
            Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
        };
        let cli = parse(&arguments)?;
        if cli.command.is_some() {
            return Ok(cli);
        }
        arguments.push("demo".into());
        parse(&arguments)
    }

    /// Runs the command.
    pub fn run(&self, out: Output) -> Result<Outcome> {
        let device = &self.global.device;
        if device.is_gpu() {
            compiling::report();
        }
        match &self.command {
            None => Ok(Outcome::Done),
            Some(Command::Demo(args)) => demo::run(args, device, out),
            Some(Command::Eval(args)) => eval::run(args, device, out),
            Some(Command::Generate(args)) => generate::run(args, device, out),
            Some(Command::Serve(args)) => serve::run(args, device, out),
            Some(Command::Inspect(args)) => inspect::run(args, out),
            Some(Command::Logits(args)) => logits::run(args, device, out),
            Some(Command::Convert(args)) => convert::run(args, device, out),
            Some(Command::Plan(args)) => plan::run(args, device, out),
            Some(Command::Report(args)) => report::run(args, out),
            Some(Command::Attention(args)) => attention::run(args, device, out),
            Some(Command::Check(args)) => check::run(args, device, out),
            Some(Command::Cache(args)) => cache::run(args, out),
            Some(Command::Completions(args)) => completions::run(args, Self::command(), out),
        }
    }
}

/// Lets every option take a negative number, which would otherwise be read as an option. Whether it
/// is in range is checked with the value, whose error names the option and the range.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_action() {
        ArgAction::Set | ArgAction::Append => arg.allow_negative_numbers(true),
        _ => arg,
    });
    command.mut_subcommands(with_negative_numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_number_is_a_value() {
        let parse = |arguments: &[&str]| {
            let arguments = arguments.iter().map(OsString::from);
            Cli::from_arguments(arguments.collect()).map_err(|error| error.to_string())
        };
        let generate = ["sparq", "generate", "--prompt", "a"];
        let with = |more: &[&str]| parse(&[&generate[..], more].concat());
        // Refused by the range of the temperature when it runs.
        assert!(with(&["--temperature", "-1"]).is_ok());
        let error = with(&["--max-new-tokens", "-1"]).unwrap_err();
        let expected = "'--max-new-tokens <N>': expected a whole number, at least 0, found \"-1\"";
        assert!(error.contains(expected), "{error}");
        assert!(with(&["-x"]).is_err());
        // The values of these options may begin as an option does.
        assert!(parse(&["sparq", "generate", "--prompt", "-x"]).is_ok());
        assert!(parse(&["sparq", "logits", "--tokens", "-1,2", "--out", "a"]).is_ok());
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
