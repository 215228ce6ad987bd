//! `sparq generate`: text, sampling and conversations.

use serde_json::json;

use crate::convert::EMBEDDED;
use crate::support::{Checkpoint, VOCAB, document, has_fields, sparq, stdout, words};

#[test]
fn text_equals_the_document() {
    let line = "generate --prompt 'In the beginning God created the heaven and the' \
                --max-new-tokens 24";
    let generated = document(line);
    assert_eq!(generated["finish"], "max_new_tokens");
    assert_eq!(generated["stats"]["new_tokens"], 24);
    assert_eq!(generated["attention"]["method"], "auto");
    let seconds = |of: &str, key: &str| generated[of][key].as_f64().unwrap();
    let loaded = seconds("start", "load_seconds");
    let first_token = seconds("start", "first_token_seconds");
    assert!(loaded > 0.0 && loaded + seconds("stats", "prefill_seconds") < first_token);
    let text = generated["text"].as_str().unwrap();
    assert_eq!(stdout(line), format!("{text}\n"));
    // The default k covers this text, so dense attention and SparQ read everything.
    let text_of = |options: &str| document(&format!("{line} {options}"))["text"].take();
    assert_eq!(text_of("--method dense --kv-rows int8"), text);
    let dense = text_of("--method dense");
    assert_eq!(text_of("--kv-rows float"), dense);
    assert_eq!(text_of("--method dense --kv-rows float"), dense);
    let share = |method| {
        let document = document(&format!(
            "{line} --kv-rows float --top-k 16 --rank 8 --method {method}"
        ));
        document["stats"]["share_of_dense"].as_f64().unwrap()
    };
    assert!(share("sparq") < 0.9);
    // The cost model prefers dense attention for so few positions.
    assert_eq!(share("auto"), 1.0);
}

#[test]
fn lossless_text_is_that_of_dense_attention() {
    let line = "generate --prompt 'In the beginning God created the heaven and the' \
                --max-new-tokens 60 --stats";
    let dense = document(&format!("{line} --method dense"));
    assert!(dense["lossless"].is_null());
    let drafts = "--method lossless --draft-rank 8 --draft-top-k 12 --draft-tokens 3";
    let found = document(&format!("{line} {drafts}"));
    assert_eq!(found["tokens"], dense["tokens"]);
    let settings = json!({ "rank": 8, "top_k": 12, "local_window": 3 });
    has_fields(&found["lossless"]["config"]["draft"]["sparq"], &settings);
    let stats = &found["lossless"];
    assert_eq!(stats["tokens"], 59);
    let of = |key: &str| stats[key].as_f64().unwrap();
    assert!(of("acceptance") > 0.1 && of("tokens_per_verification") > 1.0);
    assert!(found["stats"]["share_of_dense"].as_f64().unwrap() < 3.0);
    // At so few positions no draft pays.
    let found = document(&format!("{line} --method lossless"));
    assert_eq!(found["tokens"], dense["tokens"]);
    assert_eq!(found["lossless"]["dense_steps"], 59);
}

#[test]
fn other_weights_draft_the_same_text() {
    let folder = tempfile::tempdir().unwrap();
    let rounded = folder.path().join("rounded").display().to_string();
    document(&format!("convert {EMBEDDED} {rounded} --dtype f16"));
    let line = "generate --prompt 'And it came to pass in those days' --max-new-tokens 40";
    let dense = document(&format!("{line} --method dense"));
    let drafts = "--method lossless --draft-top-k 12 --draft-tokens 3 --draft-model";
    let found = document(&format!("{line} {drafts} {rounded}"));
    assert_eq!(found["tokens"], dense["tokens"]);
    assert!(found["lossless"]["acceptance"].as_f64().unwrap() > 0.1);
}

#[test]
fn seed_and_stop_string_determine_the_text() {
    let generate = |more: &str| {
        document(&format!(
            "generate --prompt 'And it came to pass' --max-new-tokens 32 --temperature 1 {more}"
        ))
    };
    let text = |seed| generate(&format!("--seed {seed}"))["text"].clone();
    assert_eq!(text(5), text(5));
    assert_ne!(text(5), text(6));
    let whole = text(5).as_str().unwrap().to_owned();
    let stop = whole.split_whitespace().nth(1).unwrap();
    let stopped = generate(&format!("--seed 5 --stop '{stop}'"));
    assert_eq!(stopped["text"], whole[..whole.find(stop).unwrap()]);
    assert_eq!(stopped["finish"]["stop_string"], stop);
}

#[test]
fn chat_uses_the_template_of_the_checkpoint() {
    let checkpoint = Checkpoint::new();
    let vocab: std::collections::BTreeMap<String, usize> = (0..VOCAB)
        .map(|id| (char::from(b'A' + id as u8).to_string(), id))
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    checkpoint.write_file("tokenizer.json", tokenizer.to_string().as_bytes());
    checkpoint.write_file(
        "chat_template.jinja",
        b"{% for message in messages %}{{ message.content }}Z{% endfor %}",
    );
    let line = format!(
        "generate --model {} --max-new-tokens 3",
        checkpoint.argument()
    );
    let generated = document(&format!("{line} --system AB --chat CDE"));
    // Two messages, each with an end mark: AB Z CDE Z.
    has_fields(
        &generated["stats"],
        &json!({"prompt_tokens": 7, "new_tokens": 3}),
    );

    let mut talk = sparq();
    talk.args(words(&line))
        .arg("--chat")
        .write_stdin("AB\n\nC\n");
    let said = String::from_utf8(talk.assert().success().get_output().stdout.clone()).unwrap();
    let answers = said.lines().filter(|line| line.split(' ').count() == 3);
    assert_eq!(answers.count(), 2, "{said:?}");
}
