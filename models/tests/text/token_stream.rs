//! `TokenStream`: the text of tokens that arrive one by one.

use proptest::prelude::*;
use sparq_models::text::{TextTokenizer, TokenStream};

use crate::support::vocabularies::{END, byte_level, llama2};

/// Returns the text of each push, then that of `finish`.
fn pieces(tokenizer: &TextTokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = TokenStream::new(tokenizer.clone(), true);
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

/// Returns the id of a byte in the vocabulary of `llama2`.
fn byte(byte: u8) -> u32 {
    3 + u32::from(byte)
}

#[test]
fn character_is_emitted_with_its_last_byte() {
    let ids = byte_level(&[]).encode("né €😀", true).unwrap();
    assert_eq!(
        pieces(&byte_level(&[]), &ids),
        ["n", "", "é", " ", "", "", "€", "", "", "", "😀", ""]
    );
}

#[test]
fn incomplete_character_at_the_end_is_replaced() {
    assert_eq!(
        pieces(&byte_level(&[]), &[b'a'.into(), 0xf0, 0x9f]),
        ["a", "", "", "\u{fffd}"]
    );
    assert_eq!(
        pieces(&llama2(&["a"]), &[259, byte(0xe2), byte(0x82)]),
        ["a", "", "", "\u{fffd}\u{fffd}"]
    );
}

#[test]
fn first_space_alone_is_stripped() {
    let tokenizer = llama2(&["▁a", "▁", "b"]);
    let (a, space, b) = (259, 260, 261);
    assert_eq!(
        pieces(&tokenizer, &[1, a, a, b, space, space, b, 2]),
        ["", "a", " a", "b", " ", " ", "b", "", ""]
    );
}

#[test]
fn byte_tokens_emit_one_character_at_a_time() {
    let tokenizer = llama2(&["▁a"]);
    let ids: Vec<u32> = "你好".bytes().map(byte).chain([259]).collect();
    assert_eq!(
        pieces(&tokenizer, &ids),
        ["", "", "你", "", "", "好", " a", ""]
    );
}

#[test]
fn invalid_byte_token_keeps_emitted_characters() {
    let tokenizer = llama2(&["▁a"]);
    let ids: Vec<u32> = "你".bytes().map(byte).chain([byte(0xff), 259]).collect();
    assert_eq!(pieces(&tokenizer, &ids).concat(), "你\u{fffd} a");
}

#[test]
fn invalid_bytes_do_not_split_the_next_character() {
    for invalid in 0..8 {
        for text in ["é", "€", "😀"] {
            let ids: Vec<u32> = [0xff]
                .repeat(invalid)
                .into_iter()
                .chain(text.bytes().map(u32::from))
                .collect();
            let expected = "\u{fffd}".repeat(invalid) + text;
            assert_eq!(pieces(&byte_level(&[]), &ids).concat(), expected);
        }
    }
}

#[test]
fn special_tokens_do_not_split_characters() {
    assert_eq!(
        pieces(
            &byte_level(&[]),
            &[0xf0, END, END, 0x9f, END, END, 0x98, END, 0x80]
        )
        .concat(),
        "😀"
    );
}

#[test]
fn special_tokens_are_text_on_request() {
    let mut stream = TokenStream::new(byte_level(&[]), false);
    assert_eq!(stream.push(b'a'.into()).unwrap(), "a");
    assert_eq!(stream.push(END).unwrap(), "<|end|>");
}

#[test]
fn finish_begins_a_new_sequence() {
    let mut stream = TokenStream::new(llama2(&["▁a"]), true);
    for _ in 0..2 {
        assert_eq!(stream.push(259).unwrap(), "a");
        assert_eq!(stream.push(byte(0xe2)).unwrap(), "");
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }
}

/// Multi-byte tokens that begin or end inside characters or contain bytes that are never UTF-8.
const WORDS: [&[u8]; 8] = [
    b" the",
    b"\xe4\xbd",
    b"\xa0\xff",
    b"\xff\xe4",
    b"x\xf0\x9f",
    b"\x98\x80y",
    b"\xbd\xa0",
    b"\xef\xbf\xbd",
];

proptest! {
    #[test]
    fn stream_of_byte_level_tokens_equals_decode(
        ids in prop::collection::vec(
            // Bytes that often begin or continue a character, special tokens, unknown ids.
            prop_oneof![0u32..300, 0x80u32..0xc0, 0xe0u32..0xf5, 256u32..265],
            0..60,
        )
    ) {
        let tokenizer = byte_level(&WORDS);
        let whole = tokenizer.decode(&ids, true).unwrap();
        prop_assert_eq!(pieces(&tokenizer, &ids).concat(), whole);
    }

    #[test]
    fn stream_of_a_text_emits_complete_characters(text in "[a-c é€😀你]{0,40}") {
        for tokenizer in [byte_level(&[]), llama2(&["▁", "▁a", "a", "b"])] {
            let ids = tokenizer.encode(&text, true).unwrap();
            let pieces = pieces(&tokenizer, &ids);
            prop_assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)));
            prop_assert_eq!(pieces.concat(), text.clone());
        }
    }

    #[test]
    fn stream_of_invalid_bytes_keeps_words_around_them(
        garbage in prop::collection::vec(0x80u8..=0xff, 0..40)
    ) {
        let tokenizer = llama2(&["▁a"]);
        let mut ids = vec![259];
        ids.extend(garbage.iter().copied().map(byte));
        ids.push(259);
        let text = pieces(&tokenizer, &ids).concat();
        prop_assert!(text.starts_with('a') && text.ends_with(" a"), "{}", text);
    }
}
