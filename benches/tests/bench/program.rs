//! The program from outside: the quick preset, its files and pages, and its errors.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::LazyLock;

use assert_cmd::Command;
use sparq::cost::StepCosts;
use sparq_benches::report::{self, E2eReport, Report, to_json};
use sparq_measure::attention::{MethodName, Row};
use sparq_measure::timing::Mode;

/// Runs the program with the arguments of a line, separated by spaces.
pub fn bench(line: &str) -> Output {
    let mut command = Command::cargo_bin("sparq-bench").unwrap();
    command
        .env_remove("BURN_DEVICE")
        .env_remove("SPARQ_COMMIT")
        .args(line.split(' '))
        .output()
        .unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the standard output of a command that succeeds.
pub fn shown(line: &str) -> String {
    let output = bench(line);
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    text(&output.stdout)
}

pub fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// Returns the message of a command that fails on its input.
pub fn refusal(line: &str) -> String {
    let output = bench(line);
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    text(&output.stderr)
}

/// A device of this build and machine.
pub fn device() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| sparq_device::available()[0].to_string());
    &NAME
}

/// Runs the quick preset and reads its report. `more` begins with a space or is empty.
fn run_quick(folder: &Path, more: &str) -> Report {
    let path = folder.join("quick.json");
    let shown = shown(&format!(
        "op --device {} --preset quick --seconds 0.01 --commit 0123456789abcdef --json {}{more}",
        device(),
        path.display()
    ));
    assert_contains(&shown, &["SparQ 4bits r=16 k=64"]);
    report::read(&path).unwrap()
}

/// A repository without results.
pub fn empty_repository() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("benches/results")).unwrap();
    let readme = "# Title\n\n<!-- benchmarks -->\n<!-- /benchmarks -->\n\nThe end.\n";
    fs::write(root.path().join("README.md"), readme).unwrap();
    root
}

#[test]
fn program_quick_preset_measures_every_method() {
    let folder = tempfile::tempdir().unwrap();
    let report = run_quick(folder.path(), "");
    assert_eq!(report.head.commit.as_deref(), Some("0123456789abcdef"));
    assert!(report.head.command.starts_with("sparq-bench op --device"));
    let [run] = &report.runs[..] else {
        panic!("one device, one run")
    };
    assert!(run.bandwidth.copy_gb_per_s > 0.0);
    let of = |method| {
        let wanted = |row: &&Row| row.method == method && row.mode == Mode::Eager;
        run.rows.iter().filter(wanted).count()
    };
    assert_eq!(of(MethodName::Dense), 4);
    assert_eq!(of(MethodName::DenseBurn), 4);
    assert_eq!(of(MethodName::Sparq), 2 + 2 + 4 + 4);
    for row in &run.rows {
        let measured = row.measured.expect("every row runs on every device");
        let time = measured.time;
        assert!(time.min_us <= time.p10_us && time.p10_us <= time.median_us);
        assert!(time.median_us <= time.p90_us && time.samples >= 3);
        assert!((measured.gb_per_s - row.bytes / time.median_us / 1e3).abs() < 1e-9);
        let ratio = measured.speedup_over_dense.expect("dense was measured too");
        assert!(ratio > 0.0 && (row.method != MethodName::Dense || ratio == 1.0));
        assert_eq!(row.settings.is_some(), row.method == MethodName::Sparq);
    }
    let files = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 1, "no partial file is left");
}

#[test]
fn program_measures_layers_that_share_positions() {
    let folder = tempfile::tempdir().unwrap();
    let report = run_quick(
        folder.path(),
        " --shape 1,4,2,64,512 --sharing 3 --rows int8",
    );
    let rows: Vec<&Row> = (report.runs[0].rows.iter())
        .filter(|row| row.mode == Mode::Eager && row.settings.is_some())
        .collect();
    assert_eq!(rows.len(), 3 * 4, "two sketches and two group rules");
    for three in rows.chunks_exact(3) {
        let [sparq, given, sharing] = three else {
            unreachable!()
        };
        let methods = [sparq, given, sharing].map(|row| row.method);
        let expected = [MethodName::Sparq, MethodName::Given, MethodName::Sharing];
        assert_eq!(methods, expected);
        assert_eq!((given.layers, sharing.layers), (None, Some(3)));
        assert!(sharing.label().ends_with(", 1 of 3 layers selects"));
        let mean = (sparq.bytes + 2.0 * given.bytes) / 3.0;
        assert!(
            (sharing.bytes - mean).abs() < 1.0,
            "{} {mean}",
            sharing.bytes
        );
        assert!(
            [sparq, given, sharing]
                .iter()
                .all(|row| row.median_us() > Some(0.0))
        );
    }
}

#[test]
fn program_report_round_trips_through_json() {
    let folder = tempfile::tempdir().unwrap();
    let report = run_quick(folder.path(), "");
    let path = folder.path().join("again.json");
    fs::write(&path, to_json(&report).unwrap()).unwrap();
    assert_eq!(report::read::<Report>(&path).unwrap(), report);
}

#[test]
fn program_compare_adds_baselines_by_shape() {
    let folder = tempfile::tempdir().unwrap();
    let baselines = folder.path().join("baselines.json");
    let row = r#"{"B": 1, "H": 4, "Hkv": 2, "d": 64, "S": 512, "dtype": "f32",
        "sdpa_us": 1234.5, "best_dense_us": 1234.5}"#;
    let other = r#"{"B": 1, "H": 4, "Hkv": 2, "d": 64, "S": 777, "best_dense_us": 5.0}"#;
    let document = format!(r#"{{"device": "x", "rows": [{row}, {other}]}}"#);
    fs::write(&baselines, document).unwrap();
    let compare = format!(" --compare {}", baselines.display());
    let report = run_quick(folder.path(), &compare);
    let found = report.baselines.expect("the report includes the baselines");
    assert_eq!((found.rows.len(), found.rows[0].best_dense_us), (1, 1234.5));
}

#[test]
fn program_backends_has_a_column_per_device() {
    let shown = shown("backends --seconds 0.01 --shape 1,2,2,32,256 --rank 8 --top-k 32");
    assert_contains(&shown, &[&format!("{} us", device())]);
}

#[test]
fn program_render_check_detects_changes() {
    let root = empty_repository();
    let at = |path: &str| root.path().join(path);
    run_quick(&at("benches/results"), "");
    let folder = root.path().to_str().unwrap();
    let check = || bench(&format!("render --check --root {folder}"));

    let before = check();
    assert_eq!(before.status.code(), Some(1));
    assert!(text(&before.stderr).contains("docs/performance.md differs"));
    assert!(!at("docs").exists(), "a check changes nothing");

    shown(&format!("render --root {folder}"));
    assert_eq!(check().status.code(), Some(0));
    let page = fs::read_to_string(at("docs/performance.md")).unwrap();
    let plot = format!("op-quick-{}-time-b1-h4-4-d64-f32.svg", device());
    assert_contains(&page, &["## quick", "0123456789", &plot]);
    let svg = fs::read_to_string(at("docs/plots").join(plot)).unwrap();
    assert_contains(&svg, &["floor of dense", "SparQ 4bits"]);
    let gain = format!("op-quick-{}-gain-s512-h4-2-d64-f32.svg", device());
    assert!(at("docs/plots").join(gain).exists());
    let readme = fs::read_to_string(at("README.md")).unwrap();
    assert!(readme.starts_with("# Title") && readme.ends_with("The end.\n"));
    // A quick run is not in the README.
    assert_contains(&readme, &["No results yet"]);

    let edited = page.replace("## quick", "## quack");
    fs::write(at("docs/performance.md"), edited).unwrap();
    fs::write(at("docs/plots/op-old.svg"), "").unwrap();
    fs::write(at("docs/plots/other.svg"), "").unwrap();
    let stale = text(&check().stderr);
    assert_contains(&stale, &["docs/performance.md", "op-old.svg"]);
    assert!(!stale.contains("other.svg"));
    shown(&format!("render --root {folder}"));
    assert!(!at("docs/plots/op-old.svg").exists() && at("docs/plots/other.svg").exists());
    assert_eq!(check().status.code(), Some(0));
}

#[test]
fn program_e2e_is_measured_and_rendered() {
    let root = empty_repository();
    let at = |path: &str| root.path().join(path);
    let baselines = r#"{"torch": "2.0", "rows": [
        {"model": "tiny", "B": 2, "S": 300, "flash_ms_per_step": 123.0}]}"#;
    fs::write(at("e2e.json"), baselines).unwrap();
    let json = at("benches/results/small.json");
    let tables = shown(&format!(
        "e2e --device {} --dtype f32 --run tiny,2,300 --run tiny,1,40 --rank 4 --top-k 32 \
         --acceptance 0.5,0.9 --compare {} --json {}",
        device(),
        at("e2e.json").display(),
        json.display()
    ));
    let report: E2eReport = report::read(&json).unwrap();
    assert!(report.head.command.starts_with("sparq-bench e2e --device"));
    let rows = &report.run.rows;
    assert_eq!(rows.len(), 2 * 3, "dense, 4-bit sketch and full sketch");
    for row in rows {
        assert_eq!(row.skipped, None);
        let parts = row.parts.expect("parts are measured on every device");
        // No comparison of times: the load of the machine varies.
        assert!(row.step_us().unwrap() > 0.0);
        for part in [parts.attention, parts.linears] {
            assert!(part.min_us > 0.0 && part.min_us <= part.median_us && part.samples >= 3);
        }
        assert_eq!(row.settings.is_some(), row.method == MethodName::Sparq);
    }
    assert!(rows[1].cache_bytes < rows[0].cache_bytes / 2.0);
    assert_contains(&tables, &["tokens per verification"]);
    assert!(rows[0].verifications.is_empty() && rows[1].lossless(0.9).is_some());

    let folder = root.path().to_str().unwrap();
    shown(&format!("render --root {folder}"));
    let page = fs::read_to_string(at("docs/performance.md")).unwrap();
    assert_contains(
        &page,
        &["## small", "The parts of each step", "tiny | 2 | 300"],
    );
    assert_contains(&page, &["123", "SparQ 4bits r=4 k=32"]);
    // A tiny model is not in the README.
    let readme = fs::read_to_string(at("README.md")).unwrap();
    assert_contains(&readme, &["No results yet"]);
    assert!(refusal(&format!("fit {}", json.display())).contains("small.json"));
}

#[test]
fn program_fit_prints_the_cost_model() {
    let folder = tempfile::tempdir().unwrap();
    // These lengths differ enough for the time per byte to show in such short samples.
    let shapes = " --shape 1,4,4,64,1024 --shape 1,4,4,64,8192 --shape 1,4,4,64,32768";
    run_quick(folder.path(), shapes);
    let path = folder.path().join("quick.json");
    let path = path.display();
    let shown = shown(&format!("fit {path}"));
    let json = shown
        .lines()
        .find(|line| line.starts_with('{'))
        .expect("the figures are printed as JSON");
    let costs: StepCosts = serde_json::from_str(json).unwrap();
    assert!(
        costs.validate().is_ok() && costs.gb_per_s > 0.0,
        "{costs:?}"
    );
    assert_contains(&shown, &["StepCosts {", "pairs of dense and SparQ"]);
    let error = refusal(&format!("fit {path} --device abacus"));
    assert_contains(&error, &["abacus", "found 0 and 0"]);
}

#[test]
fn program_goals_preset_prints_the_goals() {
    // The preset selects the table of the goals. The shape is small and has no goal.
    let shown = shown(&format!(
        "op --device {} --preset goals --shape 1,2,2,32,256 --dtype f32 --rank 8 --top-k 32 \
         --seconds 0.01 --cache-mib 0.1",
        device()
    ));
    let line = shown
        .lines()
        .find(|line| line.starts_with("64") && line.contains("4096"))
        .expect("one line per goal");
    assert_contains(line, &["260", "125"]);
}

#[test]
fn program_committed_pages_are_up_to_date() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    shown(&format!("render --check --root {root}"));
}

#[test]
fn program_names_wrong_input() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let device = device();
    let cases: [(&str, &[&str]); 12] = [
        ("op --preset huge", &["huge", "quick", "field"]),
        ("op --device abacus", &["abacus", "flex", "cuda"]),
        ("op --shape 1,2,3", &["B,H,H_kv,d,S", "1,2,3"]),
        ("op --sketch 5bits", &["5bits", "4bits"]),
        ("op --rank 65 --top-k 8", &["found 65", "1 to 64", "d=64"]),
        ("op --compression 1e-9", &["no rank and top_k"]),
        ("op --seconds=-1", &["--seconds", "above 0", "-1"]),
        ("e2e --run gpt,1,2", &["llama3-8b", "gpt,1,2"]),
        (
            "e2e --run tiny,1,2 --rank 17",
            &["tiny", "found 17", "1 to 16"],
        ),
        ("prefill nowhere", &["nowhere", "llama3-8b", "folder"]),
        ("prefill tiny --lengths 8,0", &["--lengths", "at least 1"]),
        (
            "prefill tiny --lengths 300000",
            &["262144", "context", "300000"],
        ),
    ];
    for (line, expected) in cases {
        let message = match line.contains("--device") {
            true => refusal(line),
            false => refusal(&format!("{line} --device {device}")),
        };
        assert_contains(&message, expected);
    }

    let op = |option: &str, name: &str| {
        refusal(&format!("op --device {device} {option} {}", path(name)))
    };
    assert!(op("--json", "nowhere/x.json").contains("cannot be written"));
    assert!(op("--compare", "missing.json").contains("missing.json"));
    fs::write(path("baselines.json"), "{\"runs\": 1}").unwrap();
    let message = op("--compare", "baselines.json");
    assert_contains(&message, &["\"rows\"", "[\"runs\"]"]);
}

#[test]
fn program_render_names_wrong_files() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().to_str().unwrap();
    assert!(refusal(&format!("render --root {folder}")).contains("benches/results"));

    let results = root.path().join("benches/results");
    fs::create_dir_all(&results).unwrap();
    let no_place = refusal(&format!("render --root {folder}"));
    assert_contains(&no_place, &["README.md", "<!-- benchmarks -->"]);

    for (contents, why) in [
        ("[", "expected JSON"),
        ("{}", "no schema"),
        ("{\"schema\": 99}", "found schema 99"),
        ("{\"schema\": 1}", "missing field"),
    ] {
        fs::write(results.join("x.json"), contents).unwrap();
        let message = refusal(&format!("render --root {folder}"));
        assert_contains(&message, &["x.json", why]);
    }
}
