//! From text to tokens and back: `TextTokenizer`, `TokenStream`, `StopStrings`.

mod text_support {
    pub mod vocabularies;
}

use std::{fs, path::Path};

use proptest::prelude::*;
use sparq_models::text::{EmptyStopString, StopStrings, TextTokenizer, TokenStream};
use text_support::vocabularies::{END, byte_level, byte_level_json, llama2};

/// The pieces of a stream, what `finish` returns last.
fn pieces(tokenizer: &TextTokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = TokenStream::new(tokenizer.clone(), true);
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

/// The token id of a byte in the vocabulary of `llama2`.
fn byte(byte: u8) -> u32 {
    3 + u32::from(byte)
}

#[test]
fn a_byte_level_vocabulary_writes_bytes() {
    let tokenizer = byte_level(&[]);
    assert_eq!(tokenizer.vocab_size(), 257);
    assert_eq!(
        tokenizer.encode("né\n", true).unwrap(),
        [b'n'.into(), 0xc3, 0xa9, b'\n'.into()]
    );
    assert_eq!(tokenizer.decode(&[0xc3, 0xa9], true).unwrap(), "é");
    assert_eq!(tokenizer.token_id("Ġ"), Some(32));
    assert_eq!(tokenizer.token(32).as_deref(), Some("Ġ"));
    assert_eq!(tokenizer.token_id("no such token"), None);
    assert_eq!(tokenizer.token(99_999), None);
}

#[test]
fn special_tokens_are_added_only_when_asked_and_left_out_only_when_asked() {
    let tokenizer = llama2(&["▁", "a"]);
    let (space, a) = (259, 260);
    assert_eq!(tokenizer.encode("a", true).unwrap(), [1, space, a]);
    assert_eq!(tokenizer.encode("a", false).unwrap(), [space, a]);
    assert_eq!(tokenizer.decode(&[1, space, a, 2], true).unwrap(), "a");
    assert_eq!(
        tokenizer.decode(&[1, space, a, 2], false).unwrap(),
        "<s> a</s>"
    );
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(a));
}

#[test]
fn a_special_token_written_in_the_text_is_that_token() {
    let tokenizer = byte_level(&[]);
    assert_eq!(
        tokenizer.encode("a<|end|>", false).unwrap(),
        [b'a'.into(), END]
    );
}

#[test]
fn truncation_and_padding_in_the_file_do_not_touch_a_prompt() {
    let mut json = byte_level_json(&[]);
    json["truncation"] = serde_json::json!(
        {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    );
    json["padding"] = serde_json::json!(
        {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    );
    let tokenizer = TextTokenizer::from_bytes(json.to_string().as_bytes(), "test").unwrap();
    assert_eq!(tokenizer.encode("abcd", true).unwrap().len(), 4);
}

#[test]
fn errors_about_a_tokenizer_name_the_file() {
    let missing = TextTokenizer::from_file(Path::new("/no/such/tokenizer.json")).unwrap_err();
    assert!(missing.to_string().starts_with("/no/such/tokenizer.json: "));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, "{}").unwrap();
    let other = TextTokenizer::from_file(&path).unwrap_err().to_string();
    assert!(
        other.starts_with(&format!("{}: expected a tokenizer.json", path.display())),
        "{other}"
    );
}

#[test]
fn a_tokenizer_that_was_cut_short_anywhere_is_an_error() {
    let json = byte_level_json(&[]).to_string();
    for end in 0..json.len() {
        let cut = TextTokenizer::from_bytes(&json.as_bytes()[..end], "cut");
        let error = cut.unwrap_err().to_string();
        assert!(
            error.starts_with("cut: expected a tokenizer.json"),
            "{end}: {error}"
        );
    }
}

#[test]
fn a_charsmap_that_is_no_base64_is_an_error() {
    let mut json = byte_level_json(&[]);
    json["normalizer"] =
        serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "not base64"});
    let error = TextTokenizer::from_bytes(json.to_string().as_bytes(), "test").unwrap_err();
    assert_eq!(
        error.to_string(),
        "test: expected a tokenizer.json, found something else: precompiled_charsmap: Invalid symbol 32, offset 3."
    );
}

#[test]
fn a_trie_that_claims_to_be_longer_than_it_is_is_refused_before_it_is_read() {
    let mut json = byte_level_json(&[]);
    // A length of 2^30 + 4, and four bytes.
    let precompiled =
        serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "BAAAQAAAAAA="});
    json["normalizer"] = serde_json::json!({"type": "Sequence", "normalizers": [precompiled]});
    let error = TextTokenizer::from_bytes(json.to_string().as_bytes(), "test").unwrap_err();
    assert_eq!(
        error.to_string(),
        "test: expected a tokenizer.json, found something else: precompiled_charsmap: expected a trie of at most 4 bytes, found one of 1073741828"
    );
}

#[test]
fn a_panic_while_a_text_is_encoded_is_an_error() {
    let mut json = byte_level_json(&[]);
    // A trie of one node, which leads to others.
    json["normalizer"] =
        serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="});
    let tokenizer = TextTokenizer::from_bytes(json.to_string().as_bytes(), "test").unwrap();
    let error = tokenizer.encode("Hello", false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "test: cannot encode a text of 5 bytes: an entry of the tokenizer is not what its type needs"
    );
}

#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_a_tokenizer_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    let error = TextTokenizer::from_file(&path).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "expected a file of at most 100000000 bytes, found neither a file nor a folder"
        ),
        "{error}"
    );
}

#[test]
fn every_file_of_a_checkpoint_can_name_ends_of_a_sequence() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer.json", &byte_level_json(&[]).to_string());
    let eos_ids =
        || TextTokenizer::from_folder(folder.path()).map(|tokenizer| tokenizer.eos_ids().to_vec());
    assert_eq!(eos_ids().unwrap(), [0u32; 0]);

    write("config.json", r#"{"eos_token_id": null}"#);
    write("generation_config.json", r#"{"eos_token_id": [7, 3]}"#);
    assert_eq!(eos_ids().unwrap(), [3, 7]);

    write("config.json", r#"{"eos_token_id": 7}"#);
    write("tokenizer_config.json", r#"{"eos_token": "<|end|>"}"#);
    assert_eq!(eos_ids().unwrap(), [3, 7, END]);
    write(
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "<|end|>", "special": true}}"#,
    );
    assert_eq!(eos_ids().unwrap(), [3, 7, END]);

    write("tokenizer_config.json", r#"{"eos_token": "<|other|>"}"#);
    let unknown = eos_ids().unwrap_err().to_string();
    assert!(
        unknown.contains("tokenizer_config.json: \"eos_token\"") && unknown.contains("<|other|>"),
        "{unknown}"
    );

    write("config.json", r#"{"eos_token_id": "two"}"#);
    let wrong = eos_ids().unwrap_err().to_string();
    assert!(
        wrong.ends_with(
            "config.json: \"eos_token_id\": expected a token id or a list of token ids, found \"two\""
        ),
        "{wrong}"
    );

    write("config.json", "{");
    let broken = eos_ids().unwrap_err().to_string();
    assert!(broken.contains("config.json: not valid JSON"), "{broken}");
}

#[test]
fn a_character_comes_with_its_last_byte() {
    let ids = byte_level(&[]).encode("né €😀", true).unwrap();
    assert_eq!(
        pieces(&byte_level(&[]), &ids),
        ["n", "", "é", " ", "", "", "€", "", "", "", "😀", ""]
    );
}

#[test]
fn an_unfinished_character_at_the_end_is_a_replacement_character() {
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
fn only_the_first_space_of_a_sequence_is_stripped() {
    let tokenizer = llama2(&["▁a", "▁", "b"]);
    let (a, space, b) = (259, 260, 261);
    assert_eq!(
        pieces(&tokenizer, &[1, a, a, b, space, space, b, 2]),
        ["", "a", " a", "b", " ", " ", "b", "", ""]
    );
}

#[test]
fn characters_of_byte_tokens_come_one_by_one() {
    let tokenizer = llama2(&["▁a"]);
    let ids: Vec<u32> = "你好".bytes().map(byte).chain([259]).collect();
    assert_eq!(
        pieces(&tokenizer, &ids),
        ["", "", "你", "", "", "好", " a", ""]
    );
}

#[test]
fn a_wrong_byte_token_does_not_take_back_characters() {
    let tokenizer = llama2(&["▁a"]);
    let ids: Vec<u32> = "你".bytes().map(byte).chain([byte(0xff), 259]).collect();
    assert_eq!(pieces(&tokenizer, &ids).concat(), "你\u{fffd} a");
}

#[test]
fn wrong_bytes_before_a_character_do_not_split_it() {
    for wrong in 0..8 {
        for text in ["é", "€", "😀"] {
            let ids: Vec<u32> = [0xff]
                .repeat(wrong)
                .into_iter()
                .chain(text.bytes().map(u32::from))
                .collect();
            let expected = "\u{fffd}".repeat(wrong) + text;
            assert_eq!(pieces(&byte_level(&[]), &ids).concat(), expected);
        }
    }
}

#[test]
fn special_tokens_between_the_bytes_of_a_character_do_not_split_it() {
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
fn special_tokens_are_text_when_asked() {
    let mut stream = TokenStream::new(byte_level(&[]), false);
    assert_eq!(stream.push(b'a'.into()).unwrap(), "a");
    assert_eq!(stream.push(END).unwrap(), "<|end|>");
}

#[test]
fn a_finished_stream_begins_a_new_sequence() {
    let mut stream = TokenStream::new(llama2(&["▁a"]), true);
    for _ in 0..2 {
        assert_eq!(stream.push(259).unwrap(), "a");
        assert_eq!(stream.push(byte(0xe2)).unwrap(), "");
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }
}

/// Multi-byte tokens that begin and end within characters, and that hold bytes which are never UTF-8.
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
    fn a_stream_of_any_byte_level_tokens_is_the_text_of_all(
        ids in prop::collection::vec(
            // Bytes of which many begin or go on with a character, special tokens, and ids outside the vocabulary.
            prop_oneof![0u32..300, 0x80u32..0xc0, 0xe0u32..0xf5, 256u32..265],
            0..60,
        )
    ) {
        let tokenizer = byte_level(&WORDS);
        let whole = tokenizer.decode(&ids, true).unwrap();
        prop_assert_eq!(pieces(&tokenizer, &ids).concat(), whole);
    }

    #[test]
    fn a_stream_of_a_text_never_shows_a_part_of_a_character(text in "[a-c é€😀你]{0,40}") {
        for tokenizer in [byte_level(&[]), llama2(&["▁", "▁a", "a", "b"])] {
            let ids = tokenizer.encode(&text, true).unwrap();
            let pieces = pieces(&tokenizer, &ids);
            prop_assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)));
            prop_assert_eq!(pieces.concat(), text.clone());
        }
    }

    #[test]
    fn a_stream_of_wrong_byte_tokens_keeps_the_words_around_them(
        garbage in prop::collection::vec(0x80u8..=0xff, 0..40)
    ) {
        let tokenizer = llama2(&["▁a"]);
        let mut ids = vec![259];
        ids.extend(garbage.iter().copied().map(byte));
        ids.push(259);
        let text = pieces(&tokenizer, &ids).concat();
        prop_assert!(text.starts_with('a') && text.ends_with(" a"), "{}", text);
    }

    #[test]
    fn stop_strings_do_not_depend_on_the_pieces(
        text in "[ab\u{e9}]{0,24}",
        stops in prop::collection::vec("[ab\u{e9}]{1,4}", 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut borders: Vec<usize> = cuts
            .iter()
            .map(|cut| text.floor_char_boundary(cut.index(text.len() + 1)))
            .chain([0, text.len()])
            .collect();
        borders.sort_unstable();
        let mut filter = StopStrings::new(stops.clone()).unwrap();
        let (mut shown, mut stop) = (String::new(), None);
        for pair in borders.windows(2) {
            let released = filter.push(&text[pair[0]..pair[1]]);
            shown += &released.text;
            stop = stop.or(released.stop);
        }
        shown += &filter.finish();

        // The first end at which some stop string is complete, and the longest of those.
        let expected = text
            .char_indices()
            .map(|(at, char)| at + char.len_utf8())
            .find_map(|end| {
                let complete = (0..stops.len()).filter(|&i| text[..end].ends_with(&stops[i]));
                let index = complete.min_by_key(|&i| (std::cmp::Reverse(stops[i].len()), i))?;
                Some((text[..end - stops[index].len()].to_owned(), Some(index)))
            })
            .unwrap_or((text.clone(), None));
        prop_assert_eq!((shown, stop), expected);
    }
}

#[test]
fn text_that_may_begin_a_stop_string_is_held_back() {
    let mut stops = StopStrings::new(["<end>", "###"]).unwrap();
    let mut push = |text: &str| {
        let released = stops.push(text);
        (released.text, released.stop)
    };
    assert_eq!(push("a<e"), ("a".to_owned(), None));
    assert_eq!(push("n"), (String::new(), None));
    assert_eq!(push("<en"), ("<en".to_owned(), None));
    assert_eq!(push("d> #"), (String::new(), Some(0)));
    assert_eq!(push("more"), (String::new(), None));
    assert_eq!(stops.finish(), "");
}

#[test]
fn text_held_back_comes_at_the_end() {
    let mut stops = StopStrings::new(["###"]).unwrap();
    assert_eq!(stops.push("a##").text, "a");
    assert_eq!(stops.finish(), "##");
}

#[test]
fn the_stop_string_that_is_complete_first_ends_the_text() {
    let mut stops = StopStrings::new(["abcd", "bc"]).unwrap();
    let released = stops.push("xabcd");
    assert_eq!((released.text.as_str(), released.stop), ("xa", Some(1)));

    let mut stops = StopStrings::new(["bc", "abc"]).unwrap();
    let released = stops.push("xabc");
    assert_eq!((released.text.as_str(), released.stop), ("x", Some(1)));
}

#[test]
fn an_empty_stop_string_is_refused() {
    assert_eq!(
        StopStrings::new(["a", ""]).unwrap_err(),
        EmptyStopString { index: 1 }
    );
}
