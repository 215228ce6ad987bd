//! `sparq completions`: what makes a shell complete the program's arguments.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde::Serialize;

use crate::args::Cli;
use crate::exit::Outcome;
use crate::output::Output;

/// Arguments of `sparq completions`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  sparq completions bash > ~/.local/share/bash-completion/completions/sparq\n  sparq completions fish > ~/.config/fish/completions/sparq.fish"
)]
pub struct CompletionsArgs {
    /// The shell to write completions for
    shell: Shell,
}

#[derive(Serialize)]
struct Document {
    shell: String,
    script: String,
}

/// Prints the script.
///
/// # Errors
/// When standard output can't be written.
pub fn run(args: &CompletionsArgs, out: Output) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sparq", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    out.text(&script)?;
    out.document(&Document {
        shell: args.shell.to_string(),
        script,
    })?;
    Ok(Outcome::Done)
}
