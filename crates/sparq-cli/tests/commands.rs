//! The other commands: help, completions, inspect, generate and check, each in both forms.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{CONTEXT, Checkpoint, HEAD_DIM, VOCAB, document, sparq};

const COMMANDS: [&str; 8] = [
    "demo",
    "eval",
    "generate",
    "inspect",
    "logits",
    "convert",
    "check",
    "completions",
];

fn stdout(arguments: &[&str]) -> String {
    let output = sparq().args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_tells_exit_codes_and_gives_examples() {
    let help = stdout(&["--help"]);
    for part in ["Examples:", "Exit codes:", "--json", "--device"] {
        assert!(help.contains(part), "{help}");
    }
    for command in COMMANDS {
        assert!(help.contains(command), "{help}");
        assert!(
            stdout(&[command, "--help"]).contains("Examples:"),
            "{command}"
        );
    }
}

#[test]
fn the_examples_of_the_help_parse() {
    // A command line with a mistake ends with a usage text; with --help behind it, a right one ends with the help.
    let mut tried = 0;
    for command in [
        "",
        "demo",
        "eval",
        "generate",
        "inspect",
        "logits",
        "convert",
        "check",
        "completions",
    ] {
        let arguments: Vec<&str> = [command, "--help"]
            .into_iter()
            .filter(|argument| !argument.is_empty())
            .collect();
        let help = stdout(&arguments);
        let examples = help.split("Examples:").nth(1).unwrap();
        for line in examples
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("sparq"))
        {
            let line = line
                .split("  ")
                .next()
                .unwrap()
                .split(" > ")
                .next()
                .unwrap();
            // No example has a quote within a word.
            let words: Vec<String> = line
                .split('\'')
                .enumerate()
                .flat_map(|(index, part)| {
                    if index % 2 == 1 {
                        vec![part.to_owned()]
                    } else {
                        part.split_whitespace().map(str::to_owned).collect()
                    }
                })
                .collect();
            assert!(
                sparq()
                    .args(&words[1..])
                    .arg("--help")
                    .output()
                    .unwrap()
                    .status
                    .success(),
                "{line}"
            );
            tried += 1;
        }
    }
    assert!(tried >= 15, "{tried}");
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&["completions", shell]);
        assert!(
            COMMANDS.iter().all(|command| script.contains(command)),
            "{shell}"
        );
        assert_eq!(document(&["completions", shell])["script"], script);
    }
}

#[test]
fn inspect_reads_headers_and_no_weights() {
    let mut checkpoint = Checkpoint::new();
    // NaN in a weight is refused when it is read.
    checkpoint.tensors.get_mut("model.norm.weight").unwrap().1[0] = f32::NAN;
    checkpoint.write();
    let found = document(&["inspect", &checkpoint.argument(), "--sketch", "full"]);
    let parameters: usize = checkpoint
        .tensors
        .values()
        .map(|(_, values)| values.len())
        .sum();
    assert_eq!(found["model"]["architecture"], "LlamaForCausalLM");
    for (key, value) in [
        ("parameters", parameters),
        ("layers", 2),
        ("head_dim", HEAD_DIM),
        ("vocab_size", VOCAB),
        ("context", CONTEXT),
    ] {
        assert_eq!(found["model"][key], json!(value), "{key}");
    }
    assert_eq!(
        found["cache"]["bytes_per_token"],
        json!(2 * 2 * HEAD_DIM * 2)
    );
    assert_eq!(
        found["cache"]["sketch_bytes_per_token"],
        json!(2 * HEAD_DIM * 2)
    );
}

#[test]
fn every_budget_of_inspect_is_kept() {
    let found = document(&["inspect"]);
    let rows = found["budget"].as_array().unwrap();
    assert_eq!(rows.len(), 6 * 4);
    for row in rows {
        let (share, ratio) = (
            row["settings"]["share"].as_f64().unwrap(),
            row["ratio"].as_f64().unwrap(),
        );
        assert!(share <= ratio && share > 0.5 * ratio, "{row}");
    }
    let text = stdout(&["inspect"]);
    assert!(
        text.contains("LlamaForCausalLM") && text.contains("128k"),
        "{text}"
    );
}

#[test]
fn inspect_counts_what_each_layer_attends_to() {
    let hf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/hf");
    let all = document(&["inspect", hf.join("mistral_sliding").to_str().unwrap()]);
    assert_eq!(
        (
            &all["model"]["sliding_window"],
            &all["model"]["sliding_layers"]
        ),
        (&json!(24), &json!(3))
    );
    // 2 W d + 2 d elements of 2 bytes for each of 3 layers with 2 heads of 8, at any length.
    for row in all["budget"].as_array().unwrap() {
        assert_eq!(
            row["dense_bytes"],
            json!(3.0 * 2.0 * 2.0 * 8.0 * 2.0 * 25.0)
        );
    }
    // One of three layers slides.
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(hf.join("qwen2/config.json")).unwrap()).unwrap();
    config["use_sliding_window"] = json!(true);
    config["sliding_window"] = json!(24);
    config["layer_types"] = json!(["full_attention", "sliding_attention", "full_attention"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(
        hf.join("qwen2/model.safetensors"),
        folder.path().join("model.safetensors"),
    )
    .unwrap();
    let some = document(&["inspect", folder.path().to_str().unwrap()]);
    assert_eq!(some["model"]["sliding_layers"], json!(1));
    let mut found = 0;
    for row in some["budget"].as_array().unwrap() {
        let length = row["seq_len"].as_f64().unwrap();
        let dense = 2.0 * 2.0 * 8.0 * 2.0 * (2.0 * (length + 1.0) + 25.0);
        assert_eq!(row["dense_bytes"], json!(dense));
        if let Some(share) = row["settings"]["share"].as_f64() {
            found += 1;
            assert!(share <= row["ratio"].as_f64().unwrap(), "{row}");
        }
    }
    assert!(found > 12, "{found}");
}

#[test]
fn generate_writes_what_its_document_says() {
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
    // The default k covers this text: dense attention or SparQ, everything is read.
    assert_eq!(dense["text"], generated["text"]);
    let settings = ["--top-k", "16", "--rank", "8", "--method"];
    let share = |method| {
        let document = document(&[&arguments[..], &settings, &[method]].concat());
        document["stats"]["share_of_dense"].as_f64().unwrap()
    };
    assert!(share("sparq") < 0.9);
    // So few positions are read densely sooner than ranked.
    assert_eq!(share("auto"), 1.0);
}

#[test]
fn a_seed_is_a_text_and_a_stop_string_ends_it() {
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
fn a_chat_is_rendered_with_the_template_of_the_checkpoint() {
    let checkpoint = Checkpoint::new();
    let vocab: std::collections::BTreeMap<String, usize> = (0..VOCAB)
        .map(|id| (char::from(b'A' + id as u8).to_string(), id))
        .collect();
    let tokenizer = json!({ "version": "1.0", "added_tokens": [], "model": { "type": "BPE", "vocab": vocab, "merges": [] } });
    checkpoint.write_file("tokenizer.json", tokenizer.to_string().as_bytes());
    checkpoint.write_file(
        "chat_template.jinja",
        b"{% for message in messages %}{{ message.content }}Z{% endfor %}",
    );
    let generated = document(&[
        "generate",
        "--model",
        &checkpoint.argument(),
        "--system",
        "AB",
        "--chat",
        "CDE",
        "--max-new-tokens",
        "3",
    ]);
    // Two messages with an end mark each: AB Z CDE Z.
    assert_eq!(
        (
            &generated["stats"]["prompt_tokens"],
            &generated["stats"]["new_tokens"]
        ),
        (&json!(7), &json!(3))
    );

    let talk = sparq()
        .args([
            "generate",
            "--model",
            &checkpoint.argument(),
            "--chat",
            "--max-new-tokens",
            "3",
        ])
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

#[test]
fn check_passes_on_the_devices_of_this_build() {
    let found = document(&["check"]);
    assert_eq!(found["failed"], 0);
    assert!(found["outcomes"].as_array().unwrap().len() >= 10);
    let text = stdout(&["check"]);
    assert!(text.contains("pass") && !text.contains("FAIL"), "{text}");
}

#[test]
fn random_cases_pass_and_are_repeated_by_their_seeds() {
    let three = document(&["check", "--random", "3", "--seed", "5", "--size", "small"]);
    assert_eq!((&three["passed"], &three["failed"]), (&3.into(), &0.into()));
    let one = document(&["check", "--random", "1", "--seed", "7", "--size", "small"]);
    assert_eq!(one["outcomes"][0], three["outcomes"][2]);
    assert_eq!(one["outcomes"][0]["name"], "7");
    let text = stdout(&[
        "check", "--random", "2", "--size", "small", "--dtype", "f32",
    ]);
    assert!(text.ends_with("2 passed, 0 failed\n"), "{text}");
}

#[test]
fn a_case_that_fails_is_exit_code_1() {
    let fixture = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../sparq-conformance/fixtures/authors/14_mha_S1.safetensors"
    );
    let mut bytes = std::fs::read(fixture).unwrap();
    let header_len = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let offset = header["output"]["data_offsets"][0].as_u64().unwrap() as usize;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("case.safetensors");
    let arguments = ["check", "--fixtures", folder.path().to_str().unwrap()];
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(document(&arguments)["passed"], 1);

    // One number of what is expected is far from what any device computes.
    bytes[8 + header_len + offset..][..4].copy_from_slice(&1000.0_f32.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let output = sparq().args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("FAIL: output") && text.contains("0 passed, 1 failed"),
        "{text}"
    );
}

#[test]
fn a_closed_pipe_is_no_error() {
    // The reader goes away after the first line.
    let program = assert_cmd::cargo::cargo_bin("sparq");
    let mut child = std::process::Command::new(program)
        .args(["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
