//! Tokenizers and chat templates from the metadata.

use sparq_models::text::{ChatMessage, ChatTemplate, TextTokenizer};
use sparq_tests::assert_contains;

use super::vocabularies::{byte_level, sentence_piece};
use super::write;
use super::writer::{GgufFile, Meta};

fn tokenizer(file: &GgufFile) -> TextTokenizer {
    let (_folder, path) = write(&file.bytes());
    TextTokenizer::from_folder(&path).unwrap()
}

fn error(file: &GgufFile) -> String {
    let (_folder, path) = write(&file.bytes());
    TextTokenizer::from_folder(&path).unwrap_err().to_string()
}

#[test]
fn sentence_piece_merges_by_score_or_uses_bytes() {
    let tokenizer = tokenizer(&sentence_piece());
    assert_eq!(tokenizer.encode("a abc", true).unwrap(), [1, 11, 11, 9]);
    assert_eq!(tokenizer.encode("é", false).unwrap(), [5, 3, 4]);
    assert_eq!(
        tokenizer.decode(&[1, 11, 11, 9, 3, 4], true).unwrap(),
        "a abcé"
    );
    assert_eq!(tokenizer.eos_ids(), [2]);
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(6));
}

#[test]
fn sentence_piece_prefixes_are_optional() {
    let mut file = sentence_piece();
    file.set("tokenizer.ggml.add_bos_token", Meta::Bool(false));
    file.set("tokenizer.ggml.add_space_prefix", Meta::Bool(false));
    assert_eq!(tokenizer(&file).encode("ab", true).unwrap(), [10]);
}

#[test]
fn byte_level_splits_digits_by_pre_tokenizer() {
    let cases = [
        ("smollm", vec![6, 7, 4, 4]),
        ("gpt-2", vec![6, 7, 8]),
        ("llama-bpe", vec![6, 7, 8]),
        ("qwen2", vec![6, 7, 4, 4]),
        ("dbrx", vec![6, 7, 8]),
        ("refact", vec![6, 7, 4, 4]),
        ("gpt-4o", vec![6, 7, 8]),
        ("tekken", vec![6, 7, 4, 4]),
        ("default", vec![6, 7, 8]),
    ];
    for (pre, expected) in cases {
        let tokenizer = tokenizer(&byte_level(pre));
        let encode = |text| tokenizer.encode(text, true).unwrap();
        assert_eq!(encode("ab ab11"), expected, "{pre}");
        assert_eq!(encode("<|turn|>ab"), [1, 6], "{pre}");
        let text = tokenizer.decode(&[6, 7, 0], true).unwrap();
        assert_eq!(text, "ab ab", "{pre}");
        assert_eq!(tokenizer.eos_ids(), [0, 1], "{pre}");
    }
}

#[test]
fn capitals_and_endings_split_words() {
    let tokens = ["a", "B", "'", "s", "aB", "Ba", "'s", "a's"];
    let cases: [(&str, [&[u32]; 3]); 5] = [
        ("gpt-2", [&[4], &[5], &[0, 6]]),
        ("llama-bpe", [&[4], &[5], &[0, 6]]),
        ("gpt-4o", [&[0, 1], &[5], &[7]]),
        ("tekken", [&[0, 1], &[5], &[0, 6]]),
        // Punctuation is a part of its own, and so are the characters after it.
        ("default", [&[4], &[5], &[0, 2, 3]]),
    ];
    for (pre, expected) in cases {
        let mut file = byte_level(pre);
        file.set("tokenizer.ggml.tokens", Meta::texts(&tokens));
        file.set("tokenizer.ggml.token_type", Meta::Ints(vec![1; 8]));
        let merges = Meta::texts(&["a B", "B a", "' s", "a 's"]);
        file.set("tokenizer.ggml.merges", merges);
        file.set("tokenizer.ggml.eos_token_id", Meta::U32(u32::MAX));
        file.set("tokenizer.ggml.eot_token_id", Meta::U32(u32::MAX));
        let tokenizer = tokenizer(&file);
        for (text, expected) in ["aB", "Ba", "a's"].iter().zip(expected) {
            assert_eq!(
                tokenizer.encode(text, true).unwrap(),
                expected,
                "{pre}: {text}"
            );
        }
    }
}

#[test]
fn errors_name_the_entry() {
    let changed = |key: &str, value: Meta| {
        let mut file = sentence_piece();
        file.set(key, value);
        error(&file)
    };
    let message = error(&byte_level("unheard-of"));
    assert_contains(
        &message,
        &["model.gguf: GGUF: \"tokenizer.ggml.pre\": expected one of gpt-2, "],
    );
    assert_contains(&message, &["found \"unheard-of\""]);
    let message = changed("tokenizer.ggml.scores", Meta::Floats(vec![0.0]));
    let expected =
        "\"tokenizer.ggml.scores\": expected a list of 12, one for each token, found a list of 1";
    assert_contains(&message, &[expected]);
    let message = changed("tokenizer.ggml.bos_token_id", Meta::U32(99));
    let expected = "\"tokenizer.ggml.bos_token_id\": expected one of 12 tokens, found 99";
    assert_contains(&message, &[expected]);
    let mut file = sentence_piece();
    let long = "a".repeat(2000);
    let tokens = [
        "<unk>", "<s>", "</s>", &long, "a", "b", "c", "d", "e", "f", "g", "h",
    ];
    file.set("tokenizer.ggml.tokens", Meta::texts(&tokens));
    file.set("tokenizer.ggml.token_type", Meta::Ints(vec![1; 12]));
    let expected =
        "\"tokenizer.ggml.tokens\": expected pieces of at most 1024 bytes, found one of 2000";
    assert_contains(&error(&file), &[expected]);
    let message = error(&GgufFile::llama());
    assert_contains(&message, &["expected a list, found nothing"]);
}

#[test]
fn chat_template_has_special_tokens() {
    let mut file = sentence_piece();
    let (_folder, path) = write(&file.bytes());
    assert!(ChatTemplate::from_folder(&path, None).unwrap().is_none());
    let template = "{{ bos_token }}\
        {% for message in messages %}[{{ message.content }}]{{ eos_token }}{% endfor %}";
    file.set("tokenizer.chat_template", Meta::Text(template.into()));
    let (_folder, path) = write(&file.bytes());
    let template = ChatTemplate::from_folder(&path, None).unwrap().unwrap();
    assert_eq!(
        template.render(&[ChatMessage::user("hi")], true).unwrap(),
        "<s>[hi]</s>"
    );
}

#[test]
fn bos_is_a_default_of_the_pre_tokenizer() {
    let begins = |file: &GgufFile| tokenizer(file).encode("ab", true).unwrap()[0] == 1;
    let cases = [
        ("llama-bpe", true),
        ("tekken", true),
        ("gpt-2", false),
        ("qwen2", false),
        ("dbrx", false),
    ];
    for (pre, expected) in cases {
        let mut file = byte_level(pre);
        assert!(!begins(&file), "{pre} without a token");
        file.set("tokenizer.ggml.bos_token_id", Meta::U32(1));
        assert_eq!(begins(&file), expected, "{pre}");
        file.set("tokenizer.ggml.add_bos_token", Meta::Bool(!expected));
        assert_eq!(begins(&file), !expected, "{pre}");
    }
    // SentencePiece has the ids of Llama.
    let mut file = sentence_piece();
    let has_id = |key: &str| key.ends_with("bos_token_id") || key.ends_with("eos_token_id");
    file.metadata.retain(|(key, _)| !has_id(key));
    assert!(begins(&file));
    assert_eq!(tokenizer(&file).eos_ids(), [2]);
    // -1, as an unsigned number.
    let mut file = byte_level("llama-bpe");
    file.set("tokenizer.ggml.bos_token_id", Meta::U32(u32::MAX));
    assert!(!begins(&file));
}

#[test]
fn bos_begins_a_conversation_whose_template_has_none() {
    let render = |template: &str, add_bos: bool| {
        let mut file = sentence_piece();
        file.set("tokenizer.chat_template", Meta::text(template));
        file.set("tokenizer.ggml.add_bos_token", Meta::Bool(add_bos));
        let (_folder, path) = write(&file.bytes());
        let template = ChatTemplate::from_folder(&path, None).unwrap().unwrap();
        template.render(&[ChatMessage::user("hi")], true).unwrap()
    };
    assert_eq!(render("{{ messages[0].content }}", true), "<s>hi");
    assert_eq!(render("{{ messages[0].content }}", false), "hi");
    let own = "{{ bos_token }}{{ messages[0].content }}";
    assert_eq!([true, false].map(|add| render(own, add)), ["<s>hi"; 2]);
}

#[test]
fn turn_ends_are_known_by_their_text() {
    let mut file = byte_level("qwen2");
    let tokens = [
        "<|end|>",
        "<|im_end|>",
        "a",
        "b",
        "1",
        "<|return|>",
        "ab",
        "<|eot_id|>",
        "<|call|>",
    ];
    file.set("tokenizer.ggml.tokens", Meta::texts(&tokens));
    file.set("tokenizer.ggml.token_type", Meta::Ints(vec![1; 9]));
    file.set("tokenizer.ggml.merges", Meta::texts(&["a b"]));
    file.set("tokenizer.ggml.eos_token_id", Meta::U32(u32::MAX));
    file.set("tokenizer.ggml.eot_token_id", Meta::U32(2));
    // With <|return|> and <|call|>, <|end|> does not end a turn.
    let tokenizer = tokenizer(&file);
    assert_eq!(tokenizer.eos_ids(), [1, 2, 5, 7, 8]);
    // Their type says text.
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(0));
    assert_eq!(tokenizer.encode("ab<|im_end|>", false).unwrap(), [6, 1]);
}

#[test]
fn flipped_bytes_load_or_are_refused() {
    let template = "{{ bos_token }}{% if messages %}{{ messages[0].content }}{% endif %}";
    for mut file in [sentence_piece(), byte_level("llama-bpe")] {
        file.set("tokenizer.chat_template", Meta::Text(template.into()));
        let bytes = file.bytes();
        let (mut read, mut refused) = (0, 0);
        for place in 0..bytes.len() - 4 * 128 {
            let mut bytes = bytes.clone();
            bytes[place] ^= 0x11;
            let (_folder, path) = write(&bytes);
            let tokenizer = TextTokenizer::from_folder(&path);
            let template = ChatTemplate::from_folder(&path, None);
            match (tokenizer, template) {
                (Ok(tokenizer), Ok(_)) => {
                    // Only a panic would be a failure.
                    let _ = tokenizer.encode("ab 11 é", true);
                    read += 1;
                }
                _ => refused += 1,
            }
        }
        assert!(read > 100 && refused > 100, "{read} {refused}");
    }
}
