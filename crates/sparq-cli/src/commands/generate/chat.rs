//! A conversation on the terminal.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, Result};
use sparq_models::text::{ChatMessage, ChatTemplate};

use super::Writer;
use crate::exit::Outcome;

/// Reads one message per line and answers each, until the input ends. Ctrl-C ends an answer, not
/// the conversation.
pub(super) fn talk(
    writer: &mut Writer<'_>,
    template: &ChatTemplate,
    mut messages: Vec<ChatMessage>,
    stats: bool,
) -> Result<Outcome> {
    let prompt = if std::io::stdin().is_terminal() {
        "> "
    } else {
        ""
    };
    loop {
        writer.out.text(prompt)?;
        let mut line = String::new();
        if std::io::stdin()
            .lock()
            .read_line(&mut line)
            .context("standard input: expected text in UTF-8")?
            == 0
        {
            writer.out.line("")?;
            return Ok(Outcome::Done);
        }
        if line.trim().is_empty() {
            continue;
        }
        writer.options.cancel.reset();
        messages.push(ChatMessage::user(line.trim()));
        // A template may change earlier turns, so the whole conversation is rendered again. The
        // session reads only the tokens that the cache does not hold.
        let tokens = writer
            .session
            .tokenizer()
            .encode(&template.render(&messages, true)?, false)?;
        let generated = writer.generate(&tokens)?;
        writer.out.line("")?;
        if stats {
            eprintln!(
                "{} tokens, {:.1} tokens/s",
                generated.tokens.len(),
                generated.decode_tokens_per_second()
            );
        }
        messages.push(ChatMessage::assistant(generated.text));
    }
}
