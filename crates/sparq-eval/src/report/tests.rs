use std::path::PathBuf;

use serde_json::json;
use sparq::{Method, SparqConfig};
use sparq_models::{DecoderConfig, embedded};
use sparq_output::charts::Layout;
use sparq_plan::{Machine, ModelShape, Setup};

use super::*;

/// Returns records of needles. Dense attention finds all needles, the others fewer at small budgets
/// and large depths.
fn records() -> Vec<Record> {
    let mut records = Vec::new();
    let task = TaskName::Needle;
    for context in [1024, 4096] {
        for depth in [0.0, 0.5, 1.0] {
            for text in 0..4 {
                let methods = [
                    ("dense", None),
                    ("sparq", Some(0.125)),
                    ("sparq-4bit<&>", Some(0.125)),
                    ("sparq", Some(0.0625)),
                ];
                for (method, budget) in methods {
                    let found = match budget {
                        None => true,
                        Some(budget) => f64::from(text) / 4.0 < 8.0 * budget - 0.5 * depth,
                    };
                    let dense = Record::dense(task);
                    records.push(Record {
                        example: format!("context={context} depth={depth} text={text}"),
                        context: Some(context),
                        prompt_tokens: context,
                        method: method.into(),
                        settings: match budget {
                            None => dense.settings,
                            Some(_) => SparqConfig::new(8, 64).into(),
                        },
                        budget,
                        transfer: budget.unwrap_or(1.0),
                        score: f64::from(u8::from(found)),
                        detail: json!({ "depth": depth }).as_object().unwrap().clone(),
                        ..dense
                    });
                }
            }
        }
    }
    records
}

fn results() -> Results {
    Results {
        examples: records(),
        attention: vec![],
    }
}

fn roofline() -> Roofline {
    let checkpoint = embedded::checkpoint().unwrap();
    let model = ModelShape::of(&DecoderConfig::from_checkpoint(&checkpoint).unwrap());
    Roofline {
        model: "embedded".into(),
        setup: Setup::new(model, Machine::find("H100").unwrap(), 2),
        methods: vec![Method::DENSE, SparqConfig::new(16, 128).into()],
    }
}

#[test]
fn page_is_self_contained_and_escapes_names() {
    let html = Report::of(&results(), Some(&roofline())).html().unwrap();
    // The XML namespace of SVG is the only address, and browsers do not fetch it.
    let addresses = html.matches("://").count();
    assert_eq!(
        addresses,
        html.matches("xmlns=\"http://www.w3.org/2000/svg\"").count()
    );
    assert!(!html.contains("url(") && !html.contains("@import") && !html.contains(" src="));
    assert!(html.contains("sparq-4bit&lt;&amp;&gt;") && !html.contains("sparq-4bit<&>"));
    assert!(html.contains("prefers-color-scheme: dark"));
}

#[test]
fn tables_have_scores_and_paired_differences() {
    let report = Report::of(&results(), None);
    let markdown = report.markdown();
    let line = |start: &str| {
        let mut lines = markdown.lines();
        lines
            .find(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("{markdown}"))
            .to_owned()
    };
    assert_eq!(
        line("| method"),
        "| method | budget | moved | less dense | 1k | 4k | examples |"
    );
    let dense = "| dense | - | 100% | - | 1.000 ± 0.000 | 1.000 ± 0.000 | 24 |";
    assert_eq!(line("| dense"), dense);
    // Of 4 texts at three depths, 4, 3 and 2 are found at 1/8 and 2, 1 and 0 at 1/16.
    assert!(line("| sparq | 1/8").contains("| 0.750 ± "), "{markdown}");
    assert!(line("| sparq | 1/8").contains("| -0.250 ± "), "{markdown}");
    assert!(line("| sparq | 1/16").contains("| 0.250 ± "), "{markdown}");
}

#[test]
fn figures_render_in_every_layout() {
    let report = Report::of(&results(), Some(&roofline()));
    let names: Vec<&String> = report.figures().map(|figure| &figure.name).collect();
    let expected = [
        "embedded-needle-budget",
        "embedded-needle-context",
        "embedded-needle-dense",
        "embedded-needle-sparq-at-1-16",
        "embedded-needle-sparq-at-1-8",
        "embedded-needle-sparq-4bit----at-1-8",
        "embedded-needle-ablation",
        "roofline",
    ];
    assert_eq!(names, expected);
    for figure in report.figures() {
        for layout in [Layout::File, Layout::Wide, Layout::Narrow] {
            figure.picture.svg(layout).unwrap();
        }
    }
    let map = report
        .figures()
        .find(|figure| figure.name.ends_with("sparq-at-1-8"));
    let Picture::Heat(map) = &map.unwrap().picture else {
        panic!("expected a heat map of needles")
    };
    assert_eq!(map.columns, ["1k", "4k"]);
    assert_eq!(map.rows, ["0%", "50%", "100%"]);
    let values: Vec<f64> = map.cells.iter().map(|cell| cell.value).collect();
    assert_eq!(values, [1.0, 1.0, 0.75, 0.75, 0.5, 0.5]);
}

#[test]
fn invalid_lines_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runs.jsonl");
    let [good, other] = [0, 1].map(|i| serde_json::to_string(&records()[i]).unwrap());
    let read_text = |text: &str| {
        std::fs::write(&path, text).unwrap();
        read(std::slice::from_ref(&path))
    };
    // The last line is unfinished.
    let found = read_text(&format!("{good}\n\n{other}\n{{\"kind\"")).unwrap();
    assert_eq!(found.examples, records()[..2]);
    // Records that several files share count once.
    let again = read_text(&format!("{good}\n{other}\n{good}\n")).unwrap();
    assert_eq!(again, found);
    let twice = read(&[path.clone(), path.clone()]).unwrap();
    assert_eq!(twice, found);
    for (line, reason) in [
        ("{}", "found no kind"),
        ("{\"kind\":\"verse\"}", "found kind \"verse\""),
        ("{\"kind\":\"example\"}", "missing field"),
        ("nothing", "expected"),
        (
            concat!(
                r#"{"kind":"attention","format":1,"model":"m","layer":0,"kv_head":0,"#,
                r#""mass":[1.0],"choices":[{"method":"dense","settings":{"method":"dense"},"#,
                r#""transfer":1.0,"positions":[1]}]}"#,
            ),
            "positions: expected less than 1, found 1",
        ),
    ] {
        let error = read_text(&format!("{good}\n{line}\n"))
            .unwrap_err()
            .to_string();
        let place = "runs.jsonl, line 2: ";
        assert!(error.contains(place) && error.contains(reason), "{error}");
    }
    let error = read_text("").unwrap_err().to_string();
    assert!(error.contains("found none in 1 files"), "{error}");
    let error = read(&[PathBuf::from("no/such/file.jsonl")]).unwrap_err();
    assert!(error.to_string().contains("no/such/file.jsonl"));
}

#[test]
fn attention_records_have_the_positions_read() {
    use burn::tensor::{Device, FloatDType, Int, Tensor};
    use sparq_models::{CausalLm, Decoder};

    let (device, checkpoint) = (Device::default(), embedded::checkpoint().unwrap());
    let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    let model = Decoder::load(&checkpoint, &config, FloatDType::F32, &device).unwrap();
    let names = [
        "dense",
        "sparq:r=64,k=24",
        "sparq-4bit:r=16,k=24",
        "lm-infinite:k=24",
        "oracle:k=24",
        "h2o:k=24",
    ];
    let methods: Vec<(String, Method)> = names
        .map(|name| (name.to_owned(), name.parse().unwrap()))
        .into();
    let all: Vec<Method> = methods.iter().map(|(_, method)| *method).collect();
    let text: Vec<i64> = (0..150).map(|at| 97 + at * at % 26).collect();
    let mut cache = model
        .new_shared_cache(1, 200, FloatDType::F32, &all)
        .unwrap();
    let prompt = Tensor::<1, Int>::from_ints(text.as_slice(), &device).unsqueeze();
    model.prefill(prompt, &mut cache, 1).unwrap();

    let record = trace(&model, &cache, 101, (1, 0), &methods, "embedded").unwrap();
    record.check().unwrap();
    assert_eq!(record.mass.len(), 151);
    assert!((record.mass.iter().sum::<f32>() - 1.0).abs() < 1e-4);
    let choices = record.choices.iter();
    let kept: Vec<f64> = choices.clone().map(|choice| record.kept(choice)).collect();
    let counts: Vec<usize> = choices.map(|choice| choice.positions.len()).collect();
    assert_eq!(counts, [151, 24, 24, 24, 24, 24]);
    assert!((kept[0] - 1.0).abs() < 1e-4);
    // With every component the scores are exact, but six of the 24 positions are the local window.
    // The oracle keeps the most that 24 positions can.
    assert!(
        kept[1..].iter().all(|share| *share <= kept[4] + 1e-9),
        "{kept:?}"
    );
    assert!(kept[1] > kept[3], "{kept:?}");
    let lm_infinite: Vec<usize> = (0..12).chain(139..151).collect();
    assert_eq!(record.choices[3].positions, lm_infinite);

    let line = serde_json::to_string(&record).unwrap();
    let again: AttentionRecord = serde_json::from_str(&line).unwrap();
    assert_eq!(again.mass, record.mass);
    for (again, choice) in again.choices.iter().zip(&record.choices) {
        assert_eq!(again.settings, choice.settings);
        assert_eq!(again.positions, choice.positions);
    }
    let results = Results {
        examples: vec![],
        attention: vec![record],
    };
    let report = Report::of(&results, None);
    assert!(report.html().unwrap().contains("24 of 151 positions"));
    let (markdown, row) = (
        report.markdown(),
        "| lm-infinite:k=24,first=12 | 1 | 0 | 24 |",
    );
    assert!(markdown.contains(row), "{markdown}");

    for place in [(99, 0), (0, 99)] {
        let error = trace(&model, &cache, 101, place, &methods, "embedded").unwrap_err();
        assert!(error.to_string().contains("found 99"), "{error}");
    }
}

#[test]
fn all_tasks_of_a_context_share_a_table() {
    let mut results = results();
    assert!(!Report::of(&results, None).markdown().contains("All tasks"));
    let bits = |method: &str, budget: Option<f64>, score: f64| {
        let dense = Record::dense(TaskName::Bpc);
        Record {
            example: "context=4096 text=0".into(),
            context: Some(4096),
            method: method.into(),
            settings: match budget {
                None => dense.settings,
                Some(_) => SparqConfig::new(8, 64).into(),
            },
            budget,
            score,
            ..dense
        }
    };
    results
        .examples
        .extend([bits("sparq", Some(0.125), 2.25), bits("dense", None, 2.0)]);
    let markdown = Report::of(&results, None).markdown();
    let (_, table) = markdown.split_once("## All tasks, embedded").unwrap();
    let mut rows = table.lines().filter(|line| line.starts_with('|'));
    assert_eq!(rows.next(), Some("| 4k | budget | needle | bpc |"));
    let rows: Vec<&str> = rows.skip(1).take(5).collect();
    assert_eq!(rows[0], "| examples | - | 12 | 1 |");
    assert!(
        rows[1].starts_with("| dense | - | 1.000 ± 0.000 | 2.000"),
        "{rows:?}"
    );
    assert!(rows[2].starts_with("| sparq | 1/8 | -0.250 ± "), "{rows:?}");
    assert!(rows[2].contains("| +0.250"), "{rows:?}");
    assert!(rows[3].starts_with("| sparq-4bit<&> | 1/8 | ") && rows[3].ends_with("| - |"));
    assert!(
        rows[4].starts_with("| sparq | 1/16 | -0.750 ± "),
        "{rows:?}"
    );
}
