//! [`Output`]: standard output, as text or as exactly one JSON document.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// Standard output, as text or as one JSON document.
///
/// Nothing else in the program writes to standard output, so with `--json` it holds only the
/// document.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    terminal: bool,
    color: bool,
}

/// The meaning of a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A correct answer.
    Good,
    /// A wrong answer.
    Bad,
}

impl Output {
    /// Chooses the form by `--json`, the terminal and the variable NO_COLOR.
    pub fn new(json: bool) -> Self {
        let terminal = !json && io::stdout().is_terminal();
        Self {
            json,
            terminal,
            color: terminal && has_colors(&io::stdout()),
        }
    }

    /// Returns whether the output is a JSON document.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Returns whether text goes to a terminal, where lines can be rewritten.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Prints a line, unless the output is a JSON document.
    pub fn line(&self, text: &str) -> Result<()> {
        self.text(&format!("{text}\n"))
    }

    /// Prints text without a line break and flushes it, unless the output is a JSON document.
    pub fn text(&self, text: &str) -> Result<()> {
        if self.json {
            return Ok(());
        }
        write_out(text.as_bytes())
    }

    /// Prints the document, if the output is a JSON document.
    pub fn document<T: Serialize>(&self, document: &T) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        let mut text =
            serde_json::to_vec_pretty(document).context("cannot write the result as JSON")?;
        text.push(b'\n');
        write_out(&text)
    }

    /// Returns a mark: a coloured symbol on a terminal, a word in a file.
    pub fn mark(&self, mark: Mark) -> &'static str {
        match (mark, self.terminal, self.color) {
            (Mark::Good, true, true) => "\x1b[32m✓\x1b[0m",
            (Mark::Bad, true, true) => "\x1b[31m✗\x1b[0m",
            (Mark::Good, true, false) => "✓",
            (Mark::Bad, true, false) => "✗",
            (Mark::Good, false, _) => "right",
            (Mark::Bad, false, _) => "wrong",
        }
    }
}

/// Returns whether a stream is a terminal whose user has not refused colours.
pub fn has_colors(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !refused
}

fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    // The io::Error stays in the chain, where `is_closed_pipe` looks for it.
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .context("standard output")
}
