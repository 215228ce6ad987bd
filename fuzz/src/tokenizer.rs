//! `tokenizer.json`: reads it, encodes and decodes texts.

use sparq_models::text::{TextTokenizer, TokenStream};

use super::accepted;

const TEXTS: [&str; 4] = [
    "",
    "Hello, world! 12345",
    " \u{0}a\u{301}\n\t漢字 🤖\u{fffd}  \u{2581}x",
    "<s> a b abc<|end|></s>",
];

const ORIGIN: &str = "tokenizer.json";

pub(super) fn run(data: &[u8]) -> bool {
    let tokenizer = accepted(TextTokenizer::from_bytes(data, ORIGIN), ORIGIN);
    tokenizer
        .map(|tokenizer| use_it(tokenizer, ORIGIN))
        .is_some()
}

/// Encodes texts, and decodes the tokens at once and one by one.
pub(super) fn use_it(tokenizer: TextTokenizer, origin: &str) {
    for (text, special) in TEXTS
        .into_iter()
        .flat_map(|text| [(text, false), (text, true)])
    {
        let Some(ids) = accepted(tokenizer.encode(text, special), origin) else {
            continue;
        };
        accepted(tokenizer.decode(&ids, special), origin);
        let mut stream = TokenStream::new(tokenizer.clone(), special);
        for id in ids {
            tokenizer.token(id);
            tokenizer.is_special(id);
            accepted(stream.push(id), origin);
        }
        accepted(stream.finish(), origin);
    }
}
