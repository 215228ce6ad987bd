//! `sparq generate`: text, sampling and conversations.

use serde_json::json;

use crate::support::{Checkpoint, VOCAB, document, sparq, stdout, words};

#[test]
fn text_equals_the_document() {
    let arguments = [
        "generate",
        "--prompt",
        "In the beginning God created the heaven and the",
        "--max-new-tokens",
        "24",
    ];
    let generated = document(&arguments);
    assert_eq!(
        (&generated["finish"], &generated["stats"]["new_tokens"]),
        (&json!("max_new_tokens"), &json!(24))
    );
    assert_eq!(generated["attention"]["method"], "auto");
    assert_eq!(
        stdout(&arguments),
        format!("{}\n", generated["text"].as_str().unwrap())
    );
    let dense = document(&[&arguments[..], &["--method", "dense"]].concat());
    // The default k covers this text, so dense attention and SparQ read everything.
    assert_eq!(dense["text"], generated["text"]);
    let settings = ["--top-k", "16", "--rank", "8", "--method"];
    let share = |method| {
        let document = document(&[&arguments[..], &settings, &[method]].concat());
        document["stats"]["share_of_dense"].as_f64().unwrap()
    };
    assert!(share("sparq") < 0.9);
    // The cost model prefers dense attention for so few positions.
    assert_eq!(share("auto"), 1.0);
}

#[test]
fn seed_and_stop_string_determine_the_text() {
    let base = [
        "generate",
        "--prompt",
        "And it came to pass",
        "--max-new-tokens",
        "32",
        "--temperature",
        "1",
        "--seed",
    ];
    let text = |seed: &str| document(&[&base[..], &[seed]].concat())["text"].clone();
    assert_eq!(text("5"), text("5"));
    assert_ne!(text("5"), text("6"));
    let whole = text("5").as_str().unwrap().to_owned();
    let stop = whole.split_whitespace().nth(1).unwrap();
    let stopped = document(&[&base[..], &["5", "--stop", stop]].concat());
    assert_eq!(
        stopped["text"].as_str().unwrap(),
        &whole[..whole.find(stop).unwrap()]
    );
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
    let generated = document(&words(&format!(
        "generate --model {} --system AB --chat CDE --max-new-tokens 3",
        checkpoint.argument()
    )));
    // Two messages, each with an end mark: AB Z CDE Z.
    assert_eq!(
        (
            &generated["stats"]["prompt_tokens"],
            &generated["stats"]["new_tokens"]
        ),
        (&json!(7), &json!(3))
    );

    let talk = sparq()
        .args(words(&format!(
            "generate --model {} --chat --max-new-tokens 3",
            checkpoint.argument()
        )))
        .write_stdin("AB\n\nC\n")
        .output()
        .unwrap();
    assert!(
        talk.status.success(),
        "{}",
        String::from_utf8_lossy(&talk.stderr)
    );
    let said = String::from_utf8(talk.stdout).unwrap();
    assert_eq!(
        said.lines()
            .filter(|line| line.split(' ').count() == 3)
            .count(),
        2,
        "{said:?}"
    );
}
