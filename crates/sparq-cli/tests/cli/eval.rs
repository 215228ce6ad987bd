//! `sparq eval` on short texts: its records, continuation after an interruption, and refusals.

use std::path::{Path, PathBuf};

use crate::support::{contains, document, fails, has_fields, run, stdout, words};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Two tasks, two examples and two methods: eight answers.
const SHORT: [(&str, &str); 7] = [
    ("--task", "needle,bpc"),
    ("--methods", "dense,sparq"),
    ("--budgets", "1/4"),
    ("--context", "640"),
    ("--examples", "2"),
    ("--needles", "2"),
    ("--seed", "5"),
];
const ANSWERS: usize = 8;

struct Results {
    _folder: TempDir,
    path: PathBuf,
}

impl Results {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs").join("short.jsonl");
        Self {
            _folder: folder,
            path,
        }
    }

    /// Returns the command line. The options `more` replace those of `SHORT`.
    fn line(&self, more: &str) -> String {
        let mut line = format!("eval --out {} {more}", self.path.display());
        for (key, value) in SHORT {
            if !more.contains(key) {
                line += &format!(" {key} {value}");
            }
        }
        line
    }

    /// Runs the evaluation, which finds `resumed` answers and adds `finished`.
    fn run(&self, more: &str, resumed: usize, finished: usize) -> Value {
        let document = document(&self.line(more));
        has_fields(
            &document,
            &json!({"resumed": resumed, "finished": finished}),
        );
        document
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap()
    }

    fn records(&self) -> Vec<Value> {
        let text = self.text();
        let records = text.lines().map(|line| serde_json::from_str(line).unwrap());
        records.collect()
    }
}

/// Returns the identity of each record with its score.
fn scores(records: &[Value]) -> Vec<String> {
    let keys = ["task", "example", "method", "budget", "score"];
    let score = |record: &Value| keys.map(|key| record[key].to_string()).join(" ");
    let mut scores: Vec<String> = records.iter().map(score).collect();
    scores.sort();
    scores
}

#[test]
fn records_are_complete() {
    let results = Results::new();
    let document = results.run("", 0, ANSWERS);
    let records = results.records();
    assert_eq!(records.len(), ANSWERS);
    for record in &records {
        let expected = json!({
            "model": "embedded", "device": "flex", "dtype": "f32", "kind": "example",
            "seed": 5, "context": 640,
        });
        has_fields(record, &expected);
        let share = record["transfer"].as_f64().unwrap();
        match record["method"].as_str().unwrap() {
            "dense" => has_fields(record, &json!({"transfer": 1.0, "budget": null})),
            _ => {
                assert_eq!(record["budget"], 0.25);
                assert_eq!(record["settings"]["method"], "sparq");
                assert!(share > 0.2 && share <= 0.25, "{share}");
            }
        }
        let (steps, detail) = (record["steps"].as_u64().unwrap(), &record["detail"]);
        match record["task"].as_str().unwrap() {
            "needle" => {
                let answer = detail["answer"].as_str().unwrap().trim_start();
                let right = answer.starts_with(detail["code"].as_str().unwrap());
                assert_eq!(record["score"], f64::from(u8::from(right)), "{record}");
                assert!((1..=45).contains(&steps), "{record}");
            }
            _ => {
                let nll = detail["nll"].as_f64().unwrap();
                let bits = nll / 2f64.ln() / detail["chars"].as_f64().unwrap();
                let score = record["score"].as_f64().unwrap();
                assert!((score - bits).abs() < 1e-12, "{record}");
                assert!((1.0..5.0).contains(&bits), "{record}");
                assert_eq!((steps, &detail["chars"]), (400, &400.into()));
            }
        }
    }
    let rows = document["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_eq!(
            (&row["score"]["n"], &row["difference"]["n"]),
            (&2.into(), &2.into())
        );
        if row["method"] == "dense" {
            has_fields(
                &row["difference"],
                &json!({"mean": 0.0, "standard_error": 0.0}),
            );
        }
    }
    assert!(
        rows.iter().any(|row| row["difference"]["mean"] != 0.0),
        "{rows:?}"
    );
}

#[test]
fn lossless_answers_are_those_of_dense() {
    let results = Results::new();
    results.run("--methods dense,lossless", 0, ANSWERS);
    let records = results.records();
    let of = |method: &str| -> Vec<&Value> {
        let mut found: Vec<_> = records
            .iter()
            .filter(|one| one["method"] == method)
            .collect();
        found.sort_by_key(|one| (one["task"].to_string(), one["example"].to_string()));
        found
    };
    for (dense, lossless) in of("dense").into_iter().zip(of("lossless")) {
        assert_eq!(dense["score"], lossless["score"]);
        assert_eq!(lossless["settings"]["method"], "sparq");
        assert_eq!(dense["detail"]["answer"], lossless["detail"]["answer"]);
        if lossless["task"] == "needle" {
            assert!(lossless["detail"]["acceptance"].as_f64().unwrap() > 0.0);
        }
    }
}

#[test]
fn truncated_file_continues_to_the_same_scores() {
    let results = Results::new();
    results.run("", 0, ANSWERS);
    let whole = results.text();
    let expected = scores(&results.records());
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let kept = lines[..3].concat();
    let half = &lines[3][..lines[3].len() / 2];
    std::fs::write(&results.path, format!("{kept}{half}")).unwrap();

    results.run("", 3, ANSWERS - 3);
    assert!(results.text().starts_with(&kept));
    assert_eq!(scores(&results.records()), expected);

    // A complete file stays unchanged.
    let before = results.text();
    results.run("", ANSWERS, 0);
    assert_eq!(results.text(), before);
}

#[test]
fn more_methods_and_tasks_are_appended() {
    let results = Results::new();
    results.run("--task bpc --methods dense", 0, 2);
    results.run("", 2, ANSWERS - 2);
}

#[test]
fn parallel_examples_give_the_same_scores() {
    let rounded = |jobs: &str| {
        let results = Results::new();
        results.run(jobs, 0, ANSWERS);
        let mut records = results.records();
        for record in &mut records {
            // Threads may sum in another order.
            record["score"] = Value::from(format!("{:.4}", record["score"].as_f64().unwrap()));
        }
        scores(&records)
    };
    assert_eq!(rounded("--jobs 1"), rounded("--jobs 3"));
}

#[test]
fn file_of_another_evaluation_is_refused() {
    let results = Results::new();
    results.run("--task bpc", 0, 4);
    let before = results.text();
    let text = results.path.with_file_name("text.txt");
    std::fs::write(&text, "It is another text. ".repeat(200)).unwrap();
    let text = format!("--text {}", text.display());
    for (more, parts) in [
        ("--seed 6", ["line 1", "seed", "expected 6", "found 5"]),
        (
            "--dtype f16",
            ["line 1", "dtype", "expected f16", "found f32"],
        ),
        (text.as_str(), ["line 1", "", "tokens", "another text"]),
    ] {
        let line = results.line(&format!("--task bpc {more}"));
        fails(&line, &[&parts[..], &["short.jsonl"]].concat());
    }
    assert_eq!(results.text(), before);

    let changed = before.replacen("\"rank\":", "\"rank\":1", 1);
    std::fs::write(&results.path, changed).unwrap();
    fails(&results.line("--task bpc"), &["settings"]);

    std::fs::write(&results.path, format!("{before}no record\n")).unwrap();
    fails(&results.line(""), &["line 5", "expected a record"]);
}

#[test]
fn invalid_options_are_refused_before_writing() {
    let results = Results::new();
    for (more, parts) in [
        ("--context 9000", &["at most 8192", "found 9000"][..]),
        ("--context 100", &["expected", "found 100"]),
        ("--methods dense,spark", &["method", "sparq", "found spark"]),
        ("--methods flexgen --budgets 1/8", &["--methods", "budget"]),
        ("--budgets 2", &["--budgets", "at most 1"]),
        ("--task squad", &["--data", "squad", "found none"]),
        ("--task sqad", &["--task", "squad"]),
        ("--needles 99", &["--needles", "found 99"]),
        ("--text /no/such/text", &["/no/such/text", "cannot be read"]),
    ] {
        fails(&results.line(more), parts);
    }
    assert!(!results.path.exists());
}

#[test]
fn method_beyond_its_budget_is_left_out() {
    let results = Results::new();
    let output = run(&results.line("--task bpc --methods dense,flexgen"));
    assert!(output.status.success());
    let message = String::from_utf8(output.stderr).unwrap();
    contains(&message, &["flexgen at 1/4 is left out"]);
    assert_eq!(results.records().len(), 2);
}

#[test]
fn text_output_is_a_table() {
    let text = stdout(&Results::new().line(""));
    let tasks = ["needle (prefix_match)", "bpc (bits_per_character)"];
    contains(&text, &tasks);
    contains(&text, &["less dense", "1/4.0", " ± "]);
}

/// Waits until the file has this number of whole lines.
#[cfg(unix)]
fn wait_for_lines(path: &Path, count: usize) {
    for _ in 0..6000 {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if text.matches('\n').count() >= count {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{}: expected {count} lines within a minute", path.display());
}

#[test]
#[cfg(unix)]
fn ctrl_c_keeps_finished_answers() {
    let results = Results::new();
    let line = results.line("--task bpc --examples 40 --jobs 1");
    let program = assert_cmd::cargo::cargo_bin("sparq");
    let mut child = std::process::Command::new(program)
        .args(words(&line))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_lines(&results.path, 2);
    let status = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
    let mut message = String::new();
    std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut message).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{message}");
    contains(&message, &["the same command continues from there"]);
    let before = results.text();
    let count = results.records().len();
    assert!((2..80).contains(&count), "{count}");

    // Continues to the end of the examples that it began.
    let document = document(&results.line("--task bpc --examples 2"));
    assert_eq!(document["resumed"], count);
    assert!(results.text().starts_with(&before));
    assert!(results.records().len() >= 4);
}
