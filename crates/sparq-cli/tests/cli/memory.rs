//! Models that do not fit into memory, prompts in parts, and the type of the weights.

use crate::support::{Checkpoint, contains, document, fails, run, words};

/// A prompt of 28 tokens: a token of the embedded model is a byte.
const PROMPT: &str = "In the beginning God created";

/// The embedded model needs 18 MB for its weights in f32.
fn generate(new_tokens: usize, more: &str) -> String {
    format!("generate --prompt '{PROMPT}' --max-new-tokens {new_tokens} --stop ' ' {more}")
}

/// Returns the number before `mark` in the message of a command that fails.
fn number_before(line: &str, mark: &str) -> usize {
    let message = String::from_utf8(run(line).stderr).unwrap();
    let before = message.split(mark).next().unwrap();
    let number = before.rsplit(' ').next().unwrap();
    number.parse().unwrap_or_else(|_| panic!("{message}"))
}

#[test]
fn model_that_does_not_fit_is_refused_with_its_needs() {
    let line = generate(8000, "--method dense --memory-gb 0.04");
    let parts = [
        "--memory-gb: expected at least",
        "found 38.1 MiB",
        "for weights in f32",
        "a cache of 8028 positions",
        "a prefill of 2048 tokens at a time",
        "positions would fit",
    ];
    fails(&line, &parts);
    // The cache of fewer positions does fit, and that of one more does not.
    let fitting = number_before(&line, " positions would fit");
    assert!((100..8000).contains(&fitting), "{fitting}");
    let with = |positions: usize| {
        generate(
            positions - PROMPT.len(),
            "--method dense --memory-gb 0.04 --prefill-chunk 2048",
        )
    };
    assert!(run(&with(fitting)).status.success());
    fails(
        &with(fitting + 1),
        &[&format!("{fitting} positions would fit")],
    );
    // The sketch takes memory as well.
    let sparq = |rows: &str| {
        let line = generate(8000, &format!("--method sparq --memory-gb 0.04 {rows}"));
        number_before(&line, " positions would fit")
    };
    assert!(sparq("--kv-rows float") < fitting);
    // Rows in 8 bits, the default, save more than the sketch takes.
    assert!(sparq("") > fitting);
}

#[test]
fn weights_alone_can_be_too_large() {
    let parts = ["weights in f32", "the weights alone do not fit"];
    fails(&generate(4, "--memory-gb 0.01"), &parts);
    let half = document(&generate(4, "--memory-gb 0.012 --dtype f16"));
    assert_eq!(half["dtype"], "f16");
    let folder = tempfile::tempdir().unwrap();
    let logits = |gb: &str| {
        let out = folder.path().join("logits.safetensors");
        format!(
            "logits --tokens 1,2,3 --out {} --memory-gb {gb}",
            out.display()
        )
    };
    fails(&logits("0.01"), &parts);
    document(&logits("1"));
    fails(&generate(4, "--memory-gb 0"), &["--memory-gb", "above 0"]);
}

#[test]
fn refusal_comes_before_the_weights_are_read() {
    let checkpoint = Checkpoint::new();
    let path = checkpoint.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    checkpoint.write_file("model.safetensors", &bytes);
    let out = checkpoint.path().join("logits.safetensors");
    let line = format!(
        "logits --model {} --tokens 1,2,3 --out {}",
        checkpoint.argument(),
        out.display()
    );
    fails(&line, &["expected finite weights"]);
    fails(
        &format!("{line} --memory-gb 0.000001"),
        &["--memory-gb: expected at least"],
    );
}

#[test]
fn prefill_chunk_does_not_change_the_text() {
    let text = |more: &str| document(&generate(12, more))["text"].clone();
    let whole = text("");
    for chunk in [1, 3, 28, 1000] {
        assert_eq!(text(&format!("--prefill-chunk {chunk}")), whole, "{chunk}");
    }
    fails(
        &generate(4, "--prefill-chunk 0"),
        &["--prefill-chunk", "at least 1"],
    );
}

#[test]
fn type_of_weights_is_f32_on_a_cpu() {
    let line = generate(2, "");
    assert_eq!(document(&line)["dtype"], "f32");
    for name in ["f32", "f16", "bf16"] {
        assert_eq!(document(&format!("{line} --dtype {name}"))["dtype"], name);
    }
    let help = run("generate --help").stdout;
    let help = String::from_utf8(help).unwrap();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    contains(&help, &["f32 on CPUs. On GPUs the type of the checkpoint"]);
}

#[test]
fn loading_is_logged_when_it_is_done() {
    let mut command = crate::support::sparq();
    let line = generate(1, "-vv");
    let output = command.args(words(&line)).output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{log}");
    let done: Vec<_> = log.lines().filter(|line| line.contains(" GB/s")).collect();
    assert_eq!(done.len(), 1, "{log}");
    contains(done[0], &["embedded", "bytes in"]);
}
