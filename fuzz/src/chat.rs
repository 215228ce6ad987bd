//! `chat_template.jinja`: compiles the template and renders a conversation.

use std::time::SystemTime;

use sparq_models::text::{ChatMessage, ChatTemplate};

use super::accepted;

pub(super) fn run(data: &[u8]) -> bool {
    const NAME: &str = "chat_template.jinja";
    let Ok(source) = std::str::from_utf8(data) else {
        return false;
    };
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let Some(template) = accepted(ChatTemplate::new(source, NAME, tokens), NAME) else {
        return false;
    };
    let template = template.with_clock(|| SystemTime::UNIX_EPOCH);
    let messages = [
        ChatMessage::system("Be brief."),
        ChatMessage::user(" Hello? "),
        ChatMessage::assistant("Hello."),
        ChatMessage::user("1 + 1"),
    ];
    let texts = [false, true].map(|more| accepted(template.render(&messages, more), NAME));
    texts.iter().any(Option::is_some)
}
