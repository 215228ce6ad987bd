//! Where results go: [`Output`] keeps standard output either human or exactly one JSON document.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// Standard output in one of its two forms.
///
/// Nothing else in the program writes there, so with `--json` the document is alone.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    terminal: bool,
    color: bool,
}

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// An answer is right, a case passes.
    Good,
    /// An answer is wrong, a case fails.
    Bad,
}

impl Output {
    /// The form that `--json`, the terminal and NO_COLOR ask for.
    pub fn new(json: bool) -> Self {
        let terminal = !json && io::stdout().is_terminal();
        let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            json,
            terminal,
            color,
        }
    }

    /// Whether the result is a JSON document.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a human sees the text as it comes, so that lines may be rewritten.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Prints a line of the human form.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub fn line(&self, text: &str) -> Result<()> {
        self.text(&format!("{text}\n"))
    }

    /// Prints text of the human form as it is, at once.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub fn text(&self, text: &str) -> Result<()> {
        if self.json {
            return Ok(());
        }
        write_out(text.as_bytes())
    }

    /// Prints the document, if that is the form.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub fn document<T: Serialize>(&self, document: &T) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        let mut text = serde_json::to_vec_pretty(document).context("the result as JSON")?;
        text.push(b'\n');
        write_out(&text)
    }

    /// A mark with its colour, if the terminal wants colours: words elsewhere, since a file has no fonts to rely on.
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

fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    // The io::Error stays in the chain: a closed pipe is told from it.
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .context("standard output")
}
