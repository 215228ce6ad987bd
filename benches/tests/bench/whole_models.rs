//! Made checkpoints, prefill and starts: measured, written, read and rendered.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use serde_json::{Value, json};
use sparq_benches::report::{self, PrefillReport, ProgramReport, StartReport, to_json};
use sparq_benches::start::CacheState;

use crate::program::{assert_contains, bench, device, empty_repository, refusal, shown, text};

/// The document of a command of the program `sparq`, which has to be built beside `sparq-bench`.
fn document(arguments: &str) -> Value {
    let mut command = Command::cargo_bin("sparq").unwrap();
    command.env_remove("BURN_DEVICE").args(arguments.split(' '));
    let output = command.output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{arguments}: {out}{err}");
    serde_json::from_str(&out).unwrap()
}

/// Returns the sorted names of the fields at a JSON pointer of a report. They are the schema that
/// committed results follow.
fn fields(path: &Path, pointer: &str) -> String {
    let document: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let object = document.pointer(pointer).and_then(Value::as_object);
    let names = object.unwrap_or_else(|| panic!("no object at {pointer}"));
    let mut names: Vec<&str> = names.keys().map(String::as_str).collect();
    names.sort_unstable();
    names.join(" ")
}

/// Makes a model of the shape `tiny` with a prompt of 100 tokens, below `folder`. Returns its path.
fn make_tiny(folder: &Path) -> String {
    let path = folder.join("small").display().to_string();
    let made = bench(&format!(
        "make-model tiny {path} --dtype f32 --prompts 100 --layers 3"
    ));
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(made.stdout.is_empty());
    // Two tables, three layers of four projections and an MLP, and seven norms.
    let weights = 2 * 512 * 64 + 3 * (64 * (2 * 64 + 2 * 32) + 3 * 64 * 128) + 7 * 64;
    assert_contains(&text(&made.stderr), &[&format!("{weights} weights")]);
    path
}

#[test]
fn made_model_generates_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = make_tiny(folder.path());
    let inspected = document(&format!("inspect {path} --json"));
    assert!(inspected.to_string().contains("LlamaForCausalLM"));
    let generated = document(&format!(
        "generate --json --device {} --model {path} --prompt-file {path}/p100.txt \
         --max-new-tokens 3",
        device()
    ));
    let stats = &generated["stats"];
    assert_eq!(
        (&stats["prompt_tokens"], &stats["new_tokens"]),
        (&json!(100), &json!(3))
    );
    assert!(!generated["text"].as_str().unwrap().is_empty());
    let again = refusal(&format!("make-model tiny {path}"));
    assert_contains(&again, &["new or empty folder", &path]);
}

#[test]
fn prefill_is_measured_and_rendered() {
    let root = empty_repository();
    let at = |path: &str| root.path().join(path);
    let row = |layers: usize, ms: f64| {
        let key = json!({"model": "tiny", "layers": layers, "dtype": "f32", "S": 200});
        let mut row = key.as_object().unwrap().clone();
        row.insert("flash_ms".into(), ms.into());
        row
    };
    let peers = json!({"torch": "2.0", "matmul_TFLOPS": 1e6, "rows": [row(2, 77.5), row(4, 1.0)]});
    fs::write(at("peers.json"), peers.to_string()).unwrap();
    let path = at("benches/results/h200-prefill.json");
    let line = format!(
        "prefill tiny --device {} --dtype f32 --lengths 30,200 --chunk 32 --samples 2",
        device()
    );
    let shown_table = shown(&format!(
        "{line} --compare {} --json {}",
        at("peers.json").display(),
        path.display()
    ));
    assert_contains(&shown_table, &["Matrix peak", "tokens/s", "of peak"]);
    let mut report: PrefillReport = report::read(&path).unwrap();
    assert!(report.head.command.starts_with("sparq-bench prefill tiny"));
    let run = &report.run;
    assert_eq!((run.model.as_str(), run.layers, run.chunk), ("tiny", 2, 32));
    assert!(run.matrix.tflops > 0.0);
    let lengths: Vec<usize> = run.rows.iter().map(|row| row.seq_len).collect();
    assert_eq!(lengths, [30, 200]);
    for row in &run.rows {
        assert_eq!((row.skipped.as_ref(), row.time.unwrap().samples), (None, 2));
    }
    assert_eq!(report.baselines.as_ref().unwrap().rows.len(), 1);
    for (pointer, names) in [
        ("", "bench command commit date machine peers run schema"),
        ("/run", "chunk device dtype gpu layers matrix model rows"),
        ("/run/matrix", "size tflops"),
        (
            "/run/rows/1",
            "flops reserved_bytes seq_len skipped split time",
        ),
        ("/run/rows/1/flops", "attention products"),
        ("/peers", "device matmul_tflops rows torch"),
        ("/peers/rows/0", "S best_us dtype layers model times_us"),
    ] {
        assert_eq!(fields(&path, pointer), names, "{pointer}");
    }

    let render = format!("render --root {}", root.path().display());
    shown(&render);
    let page = || fs::read_to_string(at("docs/performance.md")).unwrap();
    assert_contains(
        &page(),
        &[
            "## h200-prefill: prefill of tiny",
            "PyTorch tokens/s",
            "| 200 |",
        ],
    );
    let readme = || fs::read_to_string(at("README.md")).unwrap();
    assert_contains(&readme(), &["No results yet"]);
    // The README has rows for longer prompts.
    report.run.rows[1].seq_len = 8192;
    fs::write(&path, to_json(&report).unwrap()).unwrap();
    shown(&render);
    assert_contains(&readme(), &["tiny prefill, f32 | 1 | 8192", "of a prefill"]);
    assert!(!readme().contains("4-bit sketch"));
}

#[test]
fn prefill_reads_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = make_tiny(folder.path());
    let line = format!(
        "prefill {path} --device {} --dtype f32 --lengths 20",
        device()
    );
    assert_contains(&shown(&line), &["3 layers", "\n20 "]);
    let error = refusal(&format!("{line} --layers 1"));
    assert_contains(&error, &["--layers", "published shape"]);
}

#[test]
fn program_is_measured_and_rendered() {
    let root = empty_repository();
    let at = |path: &str| root.path().join(path);
    let model = at("small.gguf").display().to_string();
    let made = bench(&format!("make-model tiny {model} --gguf q8_0"));
    assert!(made.status.success(), "{}", text(&made.stderr));
    let rate = |key: Value, rate: f64| {
        let mut row = key.as_object().unwrap().clone();
        row.insert("plain_tokens_per_s".into(), rate.into());
        row
    };
    let rows = json!([
        rate(json!({"test": "prompt", "tokens": 30}), 12345.0),
        rate(json!({"test": "decode", "depth": 0}), 54321.0),
        rate(json!({"test": "decode", "depth": 99}), 1.0)
    ]);
    let peers = json!({"llama_cpp": "b7", "device": "a processor", "rows": rows});
    fs::write(at("peers.json"), peers.to_string()).unwrap();
    let path = at("benches/results/cpu-program.json");
    let table = shown(&format!(
        "program {model} --device {} --dtype f32 --prompts 30 --depths 40,0 --steps 2 --samples 2 \
         --rank 4 --top-k 16 --compare {} --json {}",
        device(),
        at("peers.json").display(),
        path.display()
    ));
    assert_contains(
        &table,
        &[
            "prompt of 30",
            "decode, empty cache",
            "decode at 40",
            "54321",
        ],
    );
    let report: ProgramReport = report::read(&path).unwrap();
    assert_eq!(report.run.model, "small.gguf");
    assert_eq!((report.run.prompts.len(), report.run.decode.len()), (1, 2));
    assert_eq!(report.baselines.as_ref().unwrap().rows.len(), 2);
    for (pointer, names) in [
        (
            "/run",
            "chunk decode device dtype gpu model model_bytes prompts settings steps",
        ),
        ("/run/prompts/0", "time tokens"),
        ("/run/decode/1", "dense depth sparq"),
        ("/peers", "device llama_cpp rows torch"),
        ("/peers/rows/0", "best_us test times_us tokens"),
    ] {
        assert_eq!(fields(&path, pointer), names, "{pointer}");
    }
    shown(&format!("render --root {}", root.path().display()));
    let page = fs::read_to_string(at("docs/performance.md")).unwrap();
    let heading = "## cpu-program: small.gguf in the program";
    assert_contains(
        &page,
        &[heading, "llama.cpp b7 on a processor", "| decode at 40 |"],
    );
    let error = refusal(&format!("program {model} --compare {}", path.display()));
    assert_contains(&error, &["llama_cpp_baseline.py"]);
}

#[test]
fn start_is_measured_and_rendered() {
    let root = empty_repository();
    let at = |path: &str| root.path().join(path);
    let model = make_tiny(root.path());
    let peers = json!({"torch": "2.0", "rows": [{"model": "small", "dtype": "f32",
        "prompt_tokens": 100, "load_ms": 1000.0, "first_token_ms": 12300.0}]});
    fs::write(at("peers.json"), peers.to_string()).unwrap();
    let path = at("benches/results/h200-start.json");
    let line = format!("start --device {} --prompt {model}/p100.txt", device());
    let shown_table = shown(&format!(
        "{line} --model {model} --warm 1 --compare {} --json {} -- --method dense",
        at("peers.json").display(),
        path.display()
    ));
    assert_contains(&shown_table, &["cold", "warm", "100 tokens", "12.3"]);
    let report: StartReport = report::read(&path).unwrap();
    let run = &report.run;
    assert_eq!(
        (run.model.as_str(), run.prompt_tokens),
        ("small", Some(100))
    );
    assert!(run.model_bytes > Some(4 * 100_000));
    let caches: Vec<CacheState> = run.rows.iter().map(|row| row.cache).collect();
    assert_eq!(caches, [CacheState::Cold, CacheState::Warm]);
    for row in &run.rows {
        let phases = row.phases.expect("both processes succeed");
        for part in [
            phases.load_us,
            phases.prefill_us,
            phases.second_token_us.unwrap(),
        ] {
            assert!(part > 0.0, "{phases:?}");
        }
        assert!(phases.first_token_us < phases.total_us, "{phases:?}");
        // The clocks of two processes may differ by a tick.
        assert!(
            phases.process_us > -1e4 && phases.other_us() > -1e4,
            "{phases:?}"
        );
    }
    for (pointer, names) in [
        ("", "bench command commit date machine peers run schema"),
        (
            "/run",
            "device dtype gpu model model_bytes prompt_tokens rows",
        ),
        ("/run/rows/0", "cache cache_bytes failed phases"),
        (
            "/run/rows/0/phases",
            "first_token_us load_us prefill_us process_us second_token_us total_us",
        ),
        ("/peers/rows/0", "dtype model prompt_tokens times_us"),
    ] {
        assert_eq!(fields(&path, pointer), names, "{pointer}");
    }
    shown(&format!("render --root {}", root.path().display()));
    let page = fs::read_to_string(at("docs/performance.md")).unwrap();
    assert_contains(
        &page,
        &["## h200-start: start with small", "second token s"],
    );
    let readme = fs::read_to_string(at("README.md")).unwrap();
    assert_contains(
        &readme,
        &["small first token, cold cache", "warm cache", "12.3 s"],
    );

    let failed = refusal(&format!("{line} --model {model}/missing"));
    assert_contains(&failed, &["--model", "missing"]);
}

#[test]
fn start_names_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("prompt.txt"), "In the beginning").unwrap();
    let prompt = at("prompt.txt");
    let error = refusal(&format!("start --prompt {prompt} --program {}", at("none")));
    assert_contains(&error, &["none"]);
    let error = refusal(&format!("start --prompt {}", at("missing.txt")));
    assert_contains(&error, &["missing.txt"]);
    let error = refusal(&format!("start --prompt {prompt} --device abacus"));
    assert_contains(&error, &["abacus", "flex"]);
}
