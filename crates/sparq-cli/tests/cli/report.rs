//! `sparq attention` and `sparq report`, and the tables of docs/quality.md.

use std::fs;

use serde_json::json;

use crate::support::{contains, document, fails, has_fields, stdout};

#[test]
fn attention_is_recorded_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let text: String = (0..60)
        .map(|line| format!("Line {line} of a text that says little.\n"))
        .collect();
    fs::write(at("text.txt"), text).unwrap();
    let found = document(&format!(
        "attention --text {} --context 400 --layer 1 --method dense --method sparq-4bit:r=16,k=32 \
         --method oracle:k=32 --out {}",
        at("text.txt"),
        at("attention.jsonl")
    ));
    assert_eq!(found["positions"], 400);
    let methods = found["methods"].as_array().unwrap().iter();
    let kept: Vec<f64> = methods.map(|row| row["kept"].as_f64().unwrap()).collect();
    assert!((kept[0] - 1.0).abs() < 1e-4, "{kept:?}");
    assert!(kept[1] <= kept[2] && kept[1] > 0.1, "{kept:?}");

    let page = document(&format!(
        "report {} --out {} --markdown {} --figures {}",
        at("attention.jsonl"),
        at("report.html"),
        at("report.md"),
        at("figures")
    ));
    has_fields(&page, &json!({"attention": 1, "examples": 0}));
    let read = |name| fs::read_to_string(at(name)).unwrap();
    contains(&read("report.html"), &["32 of 400 positions", "Roofline"]);
    contains(&read("report.md"), &["| sparq:r=16,k=32"]);
    let svg = read("figures/attention-layer-1-head-0.svg");
    assert!(svg.starts_with("<svg") && svg.contains("sparq-4bit:r=16,k=32"));
}

#[test]
fn invalid_input_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("text.txt"), "some words").unwrap();
    fs::write(at("runs.jsonl"), "{\"kind\":\"verse\"}\n").unwrap();
    let text = format!("attention --text {}", at("text.txt"));
    let layer = format!("{text} --method sparq:r=16,k=4 --layer 99");
    fails(&layer, &["layer: expected less than", "99"]);
    fails(&format!("{text} --method magic"), &["--method magic"]);
    fails(
        &format!("attention --text {}", at("none.txt")),
        &["none.txt"],
    );

    let no_output = format!("report {}", at("none.jsonl"));
    fails(&no_output, &["--out, --markdown or --figures"]);
    let verse = format!("report {} --out {}", at("runs.jsonl"), at("report.html"));
    fails(&verse, &["runs.jsonl, line 1", "verse"]);
    assert!(!folder.path().join("report.html").exists());
    contains(&stdout("report --help"), &["no network"]);
}

#[test]
fn quality_page_has_the_tables_of_its_records() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let page = fs::read_to_string(docs.join("quality.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tables.md");
    // The page has the tables of all tasks. If there is only one, it has the table of that task.
    let files = [
        ("embedded", 60),
        ("gemma3", 15),
        ("gemma3-h200", 15),
        ("smollm2", 60),
        ("smollm2-h200", 15),
        ("embedded-bpc", 20),
        ("embedded-choices", 30),
        ("smollm2-bpc", 20),
        ("smollm2-choices", 15),
    ];
    for (records, least) in files {
        let file = docs.join(format!("quality/{records}.jsonl.gz"));
        stdout(&format!(
            "report {} --markdown {}",
            file.display(),
            tables.display()
        ));
        let text = fs::read_to_string(&tables).unwrap();
        let mut sections = text.split("\n## ").skip(1);
        let results = sections.next().unwrap();
        let rows: Vec<&str> = results.lines().filter(|l| l.starts_with('|')).collect();
        assert!(rows.len() > least, "{records}: {} rows", rows.len());
        for row in rows {
            assert!(page.contains(row), "{records}: {row}");
        }
    }
}
