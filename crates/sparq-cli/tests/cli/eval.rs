//! `sparq eval` on short texts: its records, continuation after an interruption, and refusals.

use std::path::{Path, PathBuf};

use crate::support::{document, fails, sparq};
use serde_json::Value;
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

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let own = SHORT.iter().filter(|(key, _)| !more.contains(key));
        let own: Vec<&str> = own.flat_map(|&(key, value)| [key, value]).collect();
        let out = ["--out", self.path.to_str().unwrap()];
        [&["eval"], own.as_slice(), more, &out].concat()
    }

    fn run(&self, more: &[&str]) -> Value {
        document(&self.arguments(more))
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap()
    }

    fn records(&self) -> Vec<Value> {
        self.text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Returns the identity of each record with its score.
fn scores(records: &[Value]) -> Vec<String> {
    let mut scores: Vec<String> = records
        .iter()
        .map(|record| {
            ["task", "example", "method", "budget", "score"]
                .map(|key| record[key].to_string())
                .join(" ")
        })
        .collect();
    scores.sort();
    scores
}

#[test]
fn records_are_complete() {
    let results = Results::new();
    let document = results.run(&[]);
    assert_eq!(
        (&document["finished"], &document["resumed"]),
        (&ANSWERS.into(), &0.into())
    );
    let records = results.records();
    assert_eq!(records.len(), ANSWERS);
    for record in &records {
        for (key, value) in [
            ("model", "embedded"),
            ("device", "flex"),
            ("dtype", "f32"),
            ("kind", "example"),
        ] {
            assert_eq!(record[key], value, "{record}");
        }
        assert_eq!(
            (&record["seed"], &record["context"]),
            (&5.into(), &640.into())
        );
        let share = record["transfer"].as_f64().unwrap();
        match record["method"].as_str().unwrap() {
            "dense" => assert_eq!((share, &record["budget"]), (1.0, &Value::Null)),
            _ => {
                assert_eq!(
                    (&record["budget"], &record["settings"]["method"]),
                    (&0.25.into(), &"sparq".into())
                );
                assert!(share > 0.2 && share <= 0.25, "{share}");
            }
        }
        let (steps, detail) = (record["steps"].as_u64().unwrap(), &record["detail"]);
        match record["task"].as_str().unwrap() {
            "needle" => {
                let answer = detail["answer"].as_str().unwrap();
                let right = answer
                    .trim_start()
                    .starts_with(detail["code"].as_str().unwrap());
                assert_eq!(record["score"], f64::from(u8::from(right)), "{record}");
                assert!((1..=45).contains(&steps), "{record}");
            }
            _ => {
                let bits =
                    detail["nll"].as_f64().unwrap() / 2f64.ln() / detail["chars"].as_f64().unwrap();
                assert!(
                    (record["score"].as_f64().unwrap() - bits).abs() < 1e-12,
                    "{record}"
                );
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
            assert_eq!(
                (
                    &row["difference"]["mean"],
                    &row["difference"]["standard_error"]
                ),
                (&0.0.into(), &0.0.into())
            );
        }
    }
    let difference = |row: &Value| row["difference"]["mean"].as_f64().unwrap();
    assert!(rows.iter().any(|row| difference(row) != 0.0), "{rows:?}");
}

#[test]
fn truncated_file_continues_to_the_same_scores() {
    let results = Results::new();
    results.run(&[]);
    let whole = results.text();
    let expected = scores(&results.records());
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let kept = lines[..3].concat();
    std::fs::write(
        &results.path,
        format!("{kept}{}", &lines[3][..lines[3].len() / 2]),
    )
    .unwrap();

    let document = results.run(&[]);
    assert_eq!(
        (&document["resumed"], &document["finished"]),
        (&3.into(), &(ANSWERS - 3).into())
    );
    assert!(results.text().starts_with(&kept));
    assert_eq!(scores(&results.records()), expected);

    // A complete file stays unchanged.
    let before = results.text();
    let document = results.run(&[]);
    assert_eq!(
        (&document["resumed"], &document["finished"]),
        (&ANSWERS.into(), &0.into())
    );
    assert_eq!(results.text(), before);
}

#[test]
fn more_methods_and_tasks_are_appended() {
    let results = Results::new();
    results.run(&["--task", "bpc", "--methods", "dense"]);
    let document = results.run(&[]);
    assert_eq!(
        (&document["resumed"], &document["finished"]),
        (&2.into(), &(ANSWERS - 2).into())
    );
}

#[test]
fn parallel_examples_give_the_same_scores() {
    let (one, three) = (Results::new(), Results::new());
    one.run(&["--jobs", "1"]);
    three.run(&["--jobs", "3"]);
    let rounded = |results: &Results| {
        let mut records = results.records();
        for record in &mut records {
            // Threads may sum in another order.
            record["score"] = Value::from(format!("{:.4}", record["score"].as_f64().unwrap()));
        }
        scores(&records)
    };
    assert_eq!(rounded(&one), rounded(&three));
}

#[test]
fn file_of_another_evaluation_is_refused() {
    let results = Results::new();
    results.run(&["--task", "bpc"]);
    let before = results.text();
    let text = results.path.with_file_name("text.txt");
    std::fs::write(&text, "It is another text. ".repeat(200)).unwrap();
    for (more, parts) in [
        (
            &["--seed", "6"][..],
            &["line 1", "seed", "expected 6", "found 5"][..],
        ),
        (
            &["--dtype", "f16"],
            &["line 1", "dtype", "expected f16", "found f32"],
        ),
        (
            &["--text", text.to_str().unwrap()],
            &["line 1", "tokens", "another text"],
        ),
    ] {
        let message = fails(&results.arguments(&[&["--task", "bpc"], more].concat()));
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        assert!(message.contains("short.jsonl"), "{message}");
    }
    assert_eq!(results.text(), before);

    let changed = before.replacen("\"rank\":", "\"rank\":1", 1);
    std::fs::write(&results.path, changed).unwrap();
    let message = fails(&results.arguments(&["--task", "bpc"]));
    assert!(message.contains("settings"), "{message}");

    std::fs::write(&results.path, format!("{before}no record\n")).unwrap();
    let message = fails(&results.arguments(&[]));
    assert!(
        message.contains("line 5") && message.contains("expected a record"),
        "{message}"
    );
}

#[test]
fn invalid_options_are_refused_before_writing() {
    let results = Results::new();
    for (more, parts) in [
        (
            &["--context", "9000"][..],
            &["at most 8192", "found 9000"][..],
        ),
        (&["--context", "100"], &["expected", "found 100"]),
        (
            &["--methods", "dense,spark"],
            &["method", "sparq", "found spark"],
        ),
        (
            &["--methods", "flexgen", "--budgets", "1/8"],
            &["--methods", "budget"],
        ),
        (&["--budgets", "2"], &["--budgets", "at most 1"]),
        (&["--task", "squad"], &["--data", "squad", "found none"]),
        (&["--task", "sqad"], &["--task", "squad"]),
        (&["--needles", "99"], &["--needles", "found 99"]),
        (
            &["--text", "/no/such/text"],
            &["/no/such/text", "cannot be read"],
        ),
    ] {
        let message = fails(&results.arguments(more));
        assert!(
            parts.iter().all(|part| message.contains(part)),
            "{more:?}: {message}"
        );
    }
    assert!(!results.path.exists());
}

#[test]
fn method_beyond_its_budget_is_left_out() {
    let results = Results::new();
    let output = sparq()
        .args(results.arguments(&["--task", "bpc", "--methods", "dense,flexgen"]))
        .output()
        .unwrap();
    assert!(output.status.success());
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("flexgen at 1/4 is left out"), "{message}");
    assert_eq!(results.records().len(), 2);
}

#[test]
fn text_output_is_a_table() {
    let results = Results::new();
    let output = sparq().args(results.arguments(&[])).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "less dense",
        "needle (prefix_match)",
        "bpc (bits_per_character)",
        "1/4.0",
        " ± ",
    ] {
        assert!(text.contains(part), "expected {part:?} in: {text}");
    }
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
    let more = ["--task", "bpc", "--examples", "40", "--jobs", "1"];
    let program = assert_cmd::cargo::cargo_bin("sparq");
    let mut child = std::process::Command::new(program)
        .args(results.arguments(&more))
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
    assert!(
        message.contains("the same command continues from there"),
        "{message}"
    );
    let before = results.text();
    let count = results.records().len();
    assert!((2..80).contains(&count), "{count}");

    // Continues to the end of the examples that it began.
    let document = results.run(&["--task", "bpc", "--examples", "2"]);
    assert_eq!(document["resumed"], count);
    assert!(results.text().starts_with(&before));
    assert!(results.records().len() >= 4);
}
