//! `sparq completions`: prints a script that completes the program's arguments in a shell.

use anyhow::Result;
use clap::Args;
use clap_complete::Shell;
use serde::Serialize;

use crate::exit::Outcome;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  sparq completions bash > ~/.local/share/bash-completion/completions/sparq
  sparq completions fish > ~/.config/fish/completions/sparq.fish";

/// The arguments of `sparq completions`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CompletionsArgs {
    /// Shell to complete arguments in
    shell: Shell,
}

#[derive(Serialize)]
struct Document {
    shell: String,
    script: String,
}

/// Prints the script for the command line `cli`.
pub fn run(args: &CompletionsArgs, mut cli: clap::Command, out: Output) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli, "sparq", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    out.text(&script)?;
    out.document(&Document {
        shell: args.shell.to_string(),
        script,
    })?;
    Ok(Outcome::Done)
}
