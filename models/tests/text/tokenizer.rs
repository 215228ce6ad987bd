//! `TextTokenizer`: encoding, decoding, end-of-sequence tokens and malformed files.

use std::{fs, path::Path};

use serde_json::json;
use sparq_models::text::{TextTokenizer, TokenizerError};

use crate::files::assert_contains;
use crate::support::vocabularies::{END, byte_level, byte_level_json, llama2};

#[test]
fn byte_level_tokens_are_bytes() {
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
fn special_tokens_are_added_and_skipped_on_request() {
    let tokenizer = llama2(&["▁", "a"]);
    let (space, a) = (259, 260);
    assert_eq!(tokenizer.encode("a", true).unwrap(), [1, space, a]);
    assert_eq!(tokenizer.encode("a", false).unwrap(), [space, a]);
    assert_eq!(tokenizer.decode(&[1, space, a, 2], true).unwrap(), "a");
    let shown = tokenizer.decode(&[1, space, a, 2], false).unwrap();
    assert_eq!(shown, "<s> a</s>");
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(a));
}

#[test]
fn special_token_in_the_text_is_that_token() {
    let tokenizer = byte_level(&[]);
    let ids = tokenizer.encode("a<|end|>", false).unwrap();
    assert_eq!(ids, [b'a'.into(), END]);
}

#[test]
fn truncation_and_padding_are_disabled() {
    let mut json = byte_level_json(&[]);
    json["truncation"] = json!(
        {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    );
    json["padding"] = json!(
        {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
         "pad_type_id": 0, "pad_token": "!"}
    );
    let tokenizer = TextTokenizer::from_bytes(json.to_string().as_bytes(), "test").unwrap();
    assert_eq!(tokenizer.encode("abcd", true).unwrap().len(), 4);
}

#[test]
fn errors_name_the_file() {
    let missing = TextTokenizer::from_file(Path::new("/no/such/tokenizer.json")).unwrap_err();
    assert!(missing.to_string().starts_with("/no/such/tokenizer.json: "));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, "{}").unwrap();
    let other = TextTokenizer::from_file(&path).unwrap_err().to_string();
    let expected = format!("{}: not a valid tokenizer.json", path.display());
    assert!(other.starts_with(&expected), "{other}");
}

#[test]
fn truncated_file_is_an_error() {
    let json = byte_level_json(&[]).to_string();
    for end in 0..json.len() {
        let cut = TextTokenizer::from_bytes(&json.as_bytes()[..end], "cut");
        let error = cut.unwrap_err().to_string();
        let invalid = error.starts_with("cut: not a valid tokenizer.json");
        assert!(invalid, "{end}: {error}");
    }
}

/// Loads a tokenizer whose normaliser has this trie.
fn with_charsmap(charsmap: &str, in_sequence: bool) -> Result<TextTokenizer, TokenizerError> {
    let mut json = byte_level_json(&[]);
    let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": charsmap});
    json["normalizer"] = match in_sequence {
        true => json!({"type": "Sequence", "normalizers": [precompiled]}),
        false => precompiled,
    };
    TextTokenizer::from_bytes(json.to_string().as_bytes(), "test")
}

#[test]
fn charsmap_that_is_not_base64_is_an_error() {
    let error = with_charsmap("not base64", false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "test: not a valid tokenizer.json: precompiled_charsmap: Invalid symbol 32, offset 3."
    );
}

#[test]
fn trie_longer_than_its_data_is_refused() {
    // A length of 2^30 + 4 and four bytes of data.
    let error = with_charsmap("BAAAQAAAAAA=", true).unwrap_err();
    assert_eq!(
        error.to_string(),
        "test: not a valid tokenizer.json: precompiled_charsmap: expected a trie of at most 4 bytes, \
         found one of 1073741828"
    );
}

#[test]
fn panic_while_encoding_is_an_error() {
    // A trie of one node that points to missing ones.
    let tokenizer = with_charsmap("BAAAAAAAAAA=", false).unwrap();
    let error = tokenizer.encode("Hello", false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "test: cannot encode a text of 5 bytes: \
         an entry of the tokenizer is inconsistent with its type"
    );
}

#[cfg(unix)]
#[test]
fn pipe_instead_of_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    let error = TextTokenizer::from_file(&path).unwrap_err().to_string();
    let expected = "expected a file of at most 100000000 bytes, found neither a file nor a folder";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn eos_ids_of_generation_config_come_first() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer.json", &byte_level_json(&[]).to_string());
    let eos_ids =
        || TextTokenizer::from_folder(folder.path()).map(|tokenizer| tokenizer.eos_ids().to_vec());
    assert_eq!(eos_ids().unwrap(), [0u32; 0]);

    write("config.json", r#"{"eos_token_id": null}"#);
    write("generation_config.json", r#"{"eos_token_id": [7, 3]}"#);
    assert_eq!(eos_ids().unwrap(), [3, 7]);

    // The entry of config.json is older than the file beside it.
    write("config.json", r#"{"eos_token_id": 9}"#);
    assert_eq!(eos_ids().unwrap(), [3, 7]);
    write("tokenizer_config.json", r#"{"eos_token": "<|end|>"}"#);
    assert_eq!(eos_ids().unwrap(), [3, 7, END]);
    let object = r#"{"eos_token": {"content": "<|end|>", "special": true}}"#;
    write("tokenizer_config.json", object);
    assert_eq!(eos_ids().unwrap(), [3, 7, END]);

    write("tokenizer_config.json", r#"{"eos_token": "<|other|>"}"#);
    let unknown = eos_ids().unwrap_err().to_string();
    let parts = &["tokenizer_config.json: \"eos_token\"", "<|other|>"];
    assert_contains(&unknown, parts);

    write("generation_config.json", r#"{"eos_token_id": -1}"#);
    write("config.json", r#"{"eos_token_id": "two"}"#);
    let wrong = eos_ids().unwrap_err().to_string();
    let expected =
        "config.json: \"eos_token_id\": expected a token id or a list of token ids, found \"two\"";
    assert!(wrong.ends_with(expected), "{wrong}");

    write("config.json", "{");
    let broken = eos_ids().unwrap_err().to_string();
    assert!(broken.contains("config.json: not valid JSON"), "{broken}");
}

#[test]
fn token_that_only_added_tokens_decoder_has_is_added() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer.json", &byte_level_json(&[]).to_string());
    // The ids give the order only, as in transformers.
    let config = json!({"eos_token": "<|turn|>", "added_tokens_decoder": {
        "900": {"content": "<|turn|>", "special": true},
        "256": {"content": "<|end|>", "special": true, "normalized": false},
        "500": {"content": "<think>", "special": false},
    }});
    write("tokenizer_config.json", &config.to_string());
    let tokenizer = TextTokenizer::from_folder(folder.path()).unwrap();
    let ids = ["<|end|>", "<think>", "<|turn|>"].map(|token| tokenizer.token_id(token));
    assert_eq!(ids, [Some(END), Some(257), Some(258)]);
    assert_eq!(tokenizer.eos_ids(), [258]);
    assert_eq!(tokenizer.encode("a<|turn|>", false).unwrap(), [97, 258]);
    assert!(tokenizer.is_special(258) && !tokenizer.is_special(257));

    for wrong in [json!([]), json!({"x": {"content": "a"}}), json!({"1": {}})] {
        let config = json!({"added_tokens_decoder": wrong});
        write("tokenizer_config.json", &config.to_string());
        let error = TextTokenizer::from_folder(folder.path()).unwrap_err();
        assert_contains(&error.to_string(), &["\"added_tokens_decoder\": expected"]);
    }
}

#[test]
fn vocabulary_in_another_form_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = || {
        TextTokenizer::from_folder(folder.path())
            .unwrap_err()
            .to_string()
    };
    assert!(!error().contains("convert it"), "{}", error());
    fs::write(folder.path().join("tokenizer.model"), "spm").unwrap();
    let parts = [
        "tokenizer.json: no such file, but tokenizer.model",
        "save_pretrained",
    ];
    assert_contains(&error(), &parts);
}
