//! `sparq attention` and `sparq report`, and the tables of docs/quality.md.

use std::fs;

use crate::support::{document, fails, sparq, words};

#[test]
fn attention_is_recorded_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text: String = (0..60)
        .map(|line| format!("Line {line} of a text that says little.\n"))
        .collect();
    fs::write(at("text.txt"), text).unwrap();
    let found = document(&words(&format!(
        "attention --text {} --context 400 --layer 1 --method dense --method sparq-4bit:r=16,k=32 --method oracle:k=32 --out {}",
        at("text.txt"),
        at("attention.jsonl")
    )));
    assert_eq!(found["positions"], 400);
    let kept: Vec<f64> = found["methods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["kept"].as_f64().unwrap())
        .collect();
    assert!(
        (kept[0] - 1.0).abs() < 1e-4 && kept[1] <= kept[2] && kept[1] > 0.1,
        "{kept:?}"
    );

    let page = document(&words(&format!(
        "report {} --out {} --markdown {} --figures {}",
        at("attention.jsonl"),
        at("report.html"),
        at("report.md"),
        at("figures")
    )));
    assert_eq!(
        (&page["attention"], &page["examples"]),
        (&1.into(), &0.into())
    );
    let html = fs::read_to_string(at("report.html")).unwrap();
    assert!(
        html.contains("32 of 400 positions") && html.contains("Roofline"),
        "{}",
        html.len()
    );
    assert!(
        fs::read_to_string(at("report.md"))
            .unwrap()
            .contains("| sparq:r=16,k=32")
    );
    let svg = fs::read_to_string(at("figures/attention-layer-1-head-0.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("sparq-4bit:r=16,k=32"));
}

#[test]
fn invalid_input_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("text.txt"), "some words").unwrap();
    let message = fails(&words(&format!(
        "attention --text {} --method sparq:r=16,k=4 --layer 99",
        at("text.txt")
    )));
    assert!(
        message.contains("layer: expected less than") && message.contains("99"),
        "{message}"
    );
    let message = fails(&["attention", "--text", &at("text.txt"), "--method", "magic"]);
    assert!(message.contains("--method magic"), "{message}");
    let message = fails(&["attention", "--text", &at("none.txt")]);
    assert!(message.contains("none.txt"), "{message}");

    let message = fails(&["report", &at("none.jsonl")]);
    assert!(
        message.contains("--out, --markdown or --figures"),
        "{message}"
    );
    fs::write(at("runs.jsonl"), "{\"kind\":\"verse\"}\n").unwrap();
    let message = fails(&["report", &at("runs.jsonl"), "--out", &at("report.html")]);
    assert!(
        message.contains("runs.jsonl, line 1") && message.contains("verse"),
        "{message}"
    );
    assert!(!folder.path().join("report.html").exists());
    let help = sparq().args(["report", "--help"]).output().unwrap();
    assert!(
        String::from_utf8(help.stdout)
            .unwrap()
            .contains("no network")
    );
}

#[test]
fn quality_page_has_the_tables_of_its_records() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let page = fs::read_to_string(docs.join("quality.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tables.md");
    for records in ["embedded", "embedded-choices", "smollm2", "smollm2-choices"] {
        let file = docs.join(format!("quality/{records}.jsonl.gz"));
        let (file, tables) = (file.to_str().unwrap(), tables.to_str().unwrap());
        sparq()
            .args(["report", file, "--markdown", tables])
            .assert()
            .success();
        let text = fs::read_to_string(tables).unwrap();
        let results = text.split("\n## Arithmetic").next().unwrap();
        let rows: Vec<&str> = results.lines().filter(|l| l.starts_with('|')).collect();
        assert!(rows.len() > 40, "{records}: {} rows", rows.len());
        for row in rows {
            assert!(page.contains(row), "{records}: {row}");
        }
    }
}
