//! `sparq convert`: the folder works like what it was made from, and is there whole or not at all.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use support::{Checkpoint, document, fails, read_logits, sparq};
use tempfile::TempDir;

/// A folder for results, and the path of one.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("converted");
    (folder, path)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The names in a folder, hidden ones too.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn logits(model: &str, tokens: &str, folder: &Path) -> Vec<f32> {
    let out = folder.join("logits.safetensors");
    document(&[
        "logits",
        "--model",
        model,
        "--tokens",
        tokens,
        "--out",
        text(&out),
    ]);
    let (_, logits) = read_logits(&out);
    std::fs::remove_file(out).unwrap();
    logits
}

/// The embedded model as a checkpoint on disk, with a tokenizer.
fn embedded() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/embedded")
}

#[test]
fn a_converted_model_has_the_logits_of_what_it_was_made_from_and_the_way_back_too() {
    let mut source = Checkpoint::new();
    source.shard();
    let (folder, converted) = place();
    let report = document(&["convert", &source.argument(), text(&converted)]);
    assert_eq!(report["stored_types"], json!(["f32"]));
    assert_eq!(report["bytes"], report["source_bytes"]);
    let back = folder.path().join("back");
    document(&[
        "convert",
        text(&converted),
        text(&back),
        "--to",
        "safetensors",
    ]);
    let expected = logits(&source.argument(), "1,2,3,4", folder.path());
    assert_eq!(logits(text(&converted), "1,2,3,4", folder.path()), expected);
    assert_eq!(logits(text(&back), "1,2,3,4", folder.path()), expected);
    let read = |folder: &Path| std::fs::read(folder.join("config.json")).unwrap();
    assert_eq!(read(&back), read(&source.path()));
    assert_eq!(names(folder.path()), ["back", "converted"]);
    assert_eq!(names(&back), ["config.json", "model.safetensors"]);
}

#[test]
fn generate_takes_the_settings_of_the_folder_where_it_is_told_nothing_else() {
    let (_folder, converted) = place();
    let report = document(&[
        "convert",
        embedded(),
        text(&converted),
        "--dtype",
        "f32",
        "--rank",
        "6",
        "--top-k",
        "40",
        "--group-score",
        "logits",
    ]);
    let expected = json!({
        "rank": 6, "top_k": 40, "local_window": 10, "sketch": "4bits",
        "mean_value": "paper", "group_score": "logits", "components": "sum_abs",
    });
    assert_eq!(report["attention"], expected);
    let generate = |more: &[&str]| -> Value {
        let common = [
            "generate",
            "--model",
            text(&converted),
            "--prompt",
            "In the beginning",
            "--max-new-tokens",
            "4",
        ];
        document(&[&common, more].concat())["attention"]["sparq"].take()
    };
    assert_eq!(generate(&[]), expected);
    let other = generate(&["--top-k", "8", "--sketch", "full"]);
    assert_eq!(
        (
            &other["rank"],
            &other["top_k"],
            &other["local_window"],
            &other["sketch"]
        ),
        (&json!(6), &json!(8), &json!(2), &json!("full"))
    );
    // A conversion of the folder keeps them, and inspect shows them.
    let (_again, again) = place();
    let report = document(&["convert", text(&converted), text(&again), "--dtype", "f16"]);
    assert_eq!(
        (&report["attention"], &report["stored_types"]),
        (&expected, &json!(["f16"]))
    );
    assert_eq!(
        document(&["inspect", text(&again)])["model"]["attention"],
        expected
    );
}

#[test]
fn settings_may_be_those_of_a_budget() {
    let (_folder, converted) = place();
    let report = document(&[
        "convert",
        embedded(),
        text(&converted),
        "--compression",
        "1/8",
        "--context",
        "16384",
    ]);
    let budget = document(&["inspect", embedded()]);
    let rows = budget["budget"].as_array().unwrap().iter();
    let row = rows
        .clone()
        .find(|row| row["seq_len"] == 16384 && row["ratio"] == 0.125)
        .unwrap();
    for key in ["rank", "top_k", "local_window"] {
        assert_eq!(report["attention"][key], row["settings"][key], "{key}");
    }
}

#[test]
fn what_cannot_be_converted_leaves_nothing() {
    let mut source = Checkpoint::new();
    let (folder, converted) = place();
    let refused = |source: &str, more: &[&str], expected: &str| {
        let message = fails(&[&["convert", source, text(&converted)], more].concat());
        assert!(message.contains(expected), "{message}");
        assert_eq!(names(folder.path()), [""; 0], "{message}");
    };
    let path = source.argument();
    refused(
        &path,
        &["--rank", "99"],
        "rank: expected 1 to 8 (the head_dim), found 99",
    );
    refused(&path, &["--compression", "1/8"], "--context");
    refused(
        &path,
        &["--compression", "9/8", "--context", "64"],
        "expected a share above 0 and at most 1",
    );
    refused(
        &path,
        &["--to", "safetensors", "--rank", "2"],
        "--to safetensors: expected no settings of SparQ",
    );
    refused("no/such/model", &[], "no/such/model");
    // A tensor that the model needs and the checkpoint lacks shows when the result is loaded.
    let norm = source.tensors.remove("model.norm.weight").unwrap();
    source.write();
    refused(
        &path,
        &[],
        "tensor \"model.norm.weight\": expected shape [16], found no tensor of that name",
    );
    source
        .tensors
        .insert("model.norm.weight".into(), (norm.0, vec![f32::NAN; 16]));
    source.write();
    refused(&path, &[], "expected finite weights, found 16 of 16");
}

#[test]
fn a_folder_with_something_in_it_is_left_alone() {
    let source = Checkpoint::new();
    let (folder, converted) = place();
    std::fs::create_dir(&converted).unwrap();
    document(&["convert", &source.argument(), text(&converted)]);
    let message = fails(&["convert", &source.argument(), text(&converted)]);
    assert!(
        message.contains("remove it or take another name"),
        "{message}"
    );
    assert_eq!(names(folder.path()), ["converted"]);
}

#[test]
fn damage_is_told_with_the_tensor_and_what_to_do() {
    let source = Checkpoint::new();
    let (_folder, converted) = place();
    document(&["convert", &source.argument(), text(&converted)]);
    let path = converted.join("model.bpk");
    let mut bytes = std::fs::read(&path).unwrap();
    // The last of the last tensor by name.
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let message = fails(&["generate", "--model", text(&converted), "--prompt", "a"]);
    assert!(
        message.contains("model.bpk: tensor \"model.norm.weight\": expected the checksum"),
        "{message}"
    );
    assert!(message.contains("convert the model again"), "{message}");
}

/// Whether a folder is a model that can be run.
fn loads(folder: &Path) -> bool {
    let out = folder.with_extension("logits");
    let arguments = [
        "logits",
        "--model",
        text(folder),
        "--tokens",
        "1,2",
        "--out",
        text(&out),
    ];
    sparq().args(arguments).output().unwrap().status.success()
}

#[test]
fn a_killed_conversion_leaves_no_folder_that_loads() {
    let program = assert_cmd::cargo::cargo_bin("sparq");
    for (form, last) in [("sparq", "sparq.json"), ("safetensors", "config.json")] {
        let (mut unfinished, mut finished) = (0, 0);
        // Longer and longer from the moment that there is something, until a conversion comes to its end; again where a busy machine let none be caught.
        let mut delay = Duration::ZERO;
        while unfinished == 0 || finished == 0 {
            assert!(unfinished + finished < 200, "{unfinished} unfinished");
            let (folder, converted) = place();
            let mut child = Command::new(&program)
                .args([
                    "convert",
                    embedded(),
                    text(&converted),
                    "--to",
                    form,
                    "--dtype",
                    "f32",
                ])
                .env_remove("BURN_DEVICE")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            while names(folder.path()).is_empty() && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(100));
            }
            std::thread::sleep(delay);
            // SIGKILL.
            child.kill().unwrap();
            let done = child.wait().unwrap().success();
            let whole = converted.exists();
            assert!(!done || whole);
            for name in names(folder.path()) {
                let path = folder.path().join(&name);
                if name == "converted" {
                    assert!(loads(&path), "after {delay:?}");
                } else {
                    unfinished += 1;
                    // The last moment before the folder gets its name is the only one in which it may be a model, a whole one.
                    assert!(
                        !loads(&path) || names(&path).iter().any(|name| name == last),
                        "{:?}",
                        names(&path)
                    );
                }
            }
            delay = if whole {
                finished += 1;
                Duration::ZERO
            } else {
                delay * 5 / 4 + Duration::from_millis(1)
            };
        }
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_and_is_told() {
    let program = assert_cmd::cargo::cargo_bin("sparq");
    let limits = [("sparq", "model.bpk"), ("safetensors", "model.safetensors")];
    for (form, file) in limits {
        let (folder, converted) = place();
        // In KiB: enough for the beginning of the weights. The signal that goes with the limit is ignored, so that writing fails as on a full disk.
        let script = "trap '' XFSZ; ulimit -f 2000; exec \"$0\" \"$@\"";
        let output = Command::new("bash")
            .args([
                "-c",
                script,
                text(&program),
                "convert",
                embedded(),
                text(&converted),
                "--to",
                form,
            ])
            .output()
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(
            message.contains(&format!("{file}: cannot be written")),
            "{message}"
        );
        assert_eq!(names(folder.path()), [""; 0]);
    }
}

#[test]
fn a_calibration_takes_the_cheapest_setting_that_keeps_what_was_asked() {
    let (folder, converted) = place();
    let book = folder.path().join("book.txt");
    std::fs::write(&book, "In the beginning God created the heaven and the earth. And the earth was without form, and void. ".repeat(4)).unwrap();
    let report = document(&[
        "convert",
        embedded(),
        text(&converted),
        "--calibrate",
        text(&book),
        "--keep",
        "0.9",
    ]);
    let measured = &report["calibration"];
    let grid = measured["grid"].as_array().unwrap();
    assert_eq!((grid.len(), &measured["tokens"]), (4 * 5, &json!(388)));
    let kept = |row: &Value| row["kept"].as_f64().unwrap();
    let cost = |row: &Value| row["share_of_dense"].as_f64().unwrap();
    let chosen = &grid[measured["chosen"].as_u64().unwrap() as usize];
    assert!(kept(chosen) >= 0.9);
    assert!(
        grid.iter()
            .all(|row| kept(row) < 0.9 || cost(row) >= cost(chosen))
    );
    assert!(
        grid.iter().any(|row| kept(row) < 0.9) && grid.iter().any(|row| cost(row) > cost(chosen))
    );
    // More positions keep more, whatever the rank.
    assert!(grid.chunks(5).all(|rows| rows.is_sorted_by_key(kept)));
    let layers = chosen["layers"].as_array().unwrap();
    assert_eq!((layers.len(), layers[0].as_array().unwrap().len()), (6, 4));

    for key in ["rank", "top_k", "local_window"] {
        assert_eq!(report["attention"][key], chosen[key], "{key}");
    }
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(converted.join("sparq.json")).unwrap()).unwrap();
    assert_eq!(
        (&manifest["attention"], &manifest["calibration"]["kept"]),
        (&report["attention"], &chosen["kept"])
    );
    assert_eq!(
        document(&["inspect", text(&converted)])["model"]["attention"],
        report["attention"]
    );

    // What is given stays.
    let (_again, again) = place();
    let report = document(&[
        "convert",
        embedded(),
        text(&again),
        "--calibrate",
        text(&book),
        "--keep",
        "0.5",
        "--rank",
        "12",
        "--context",
        "200",
    ]);
    assert_eq!(
        (
            &report["attention"]["rank"],
            &report["calibration"]["tokens"]
        ),
        (&json!(12), &json!(200))
    );
}

#[test]
fn a_text_that_cannot_be_measured_is_told() {
    let (folder, converted) = place();
    let book = folder.path().join("book.txt");
    let refused = |book: &Path, more: &[&str], expected: &str| {
        let message = fails(
            &[
                &[
                    "convert",
                    embedded(),
                    text(&converted),
                    "--calibrate",
                    text(book),
                ],
                more,
            ]
            .concat(),
        );
        assert!(message.contains(expected), "{message}");
        assert!(!converted.exists());
    };
    refused(&book, &[], "book.txt: expected a file with text in UTF-8");
    std::fs::write(&book, "too short").unwrap();
    refused(
        &book,
        &[],
        "book.txt: expected at least 64 tokens within the context, found 9",
    );
    std::fs::write(
        &book,
        "In the beginning God created the heaven and the earth. ".repeat(4),
    )
    .unwrap();
    refused(
        &book,
        &["--keep", "1"],
        "--keep: expected a setting that keeps 1 of the attention, found at most 0.",
    );
    refused(
        &book,
        &["--to", "safetensors"],
        "--to safetensors: expected no settings of SparQ",
    );
    refused(
        &book,
        &["--compression", "1/8", "--context", "100"],
        "cannot be used with",
    );
    assert_eq!(names(folder.path()), ["book.txt"]);
}

#[test]
fn a_model_in_8_bits_is_nearly_the_model_and_a_smaller_file() {
    let (folder, converted) = place();
    let report = document(&["convert", embedded(), text(&converted), "--dtype", "q8"]);
    assert_eq!(report["stored_types"], json!(["f16", "q8"]));
    let size = |report: &Value, key: &str| report[key].as_f64().unwrap();
    // 34 bytes for 32 weights of 16 bits.
    let share = size(&report, "bytes") / size(&report, "source_bytes");
    assert!(share > 0.53 && share < 0.54, "{share}");
    let [expected, found] =
        // "In the beginning"
        [embedded(), text(&converted)].map(|model| logits(model, "73,110,32,116,104,101,32,98,101,103,105,110,110,105,110,103", folder.path()));
    let differences = expected.iter().zip(&found).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0, f32::max);
    assert!(worst > 0.0 && worst < 0.5, "{worst}");
    let message = fails(&[
        "convert",
        embedded(),
        text(&folder.path().join("other")),
        "--dtype",
        "q4",
        "--to",
        "safetensors",
    ]);
    assert!(
        message.contains("--dtype: expected f32, f16 or bf16 with --to safetensors"),
        "{message}"
    );
}

#[test]
fn masks_that_no_model_reads_are_left_out() {
    let source = Checkpoint::new();
    let path = source.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mask = TensorView::new(Dtype::BOOL, vec![2, 2], &[1, 0, 1, 1]).unwrap();
    let mask = [("model.layers.0.self_attn.mask".to_owned(), mask)];
    let tensors = file.tensors().into_iter().chain(mask);
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let (folder, converted) = place();
    let report = document(&["convert", &source.argument(), text(&converted)]);
    assert_eq!(report["stored_types"], json!(["f32"]));
    let [expected, found] = [source.argument().as_str(), text(&converted)]
        .map(|model| logits(model, "1,2", folder.path()));
    assert_eq!(found, expected);
}

#[test]
fn a_model_of_pytorch_is_converted_with_its_tied_weights_once() {
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/torch/llama"
    );
    let (folder, converted) = place();
    let report = document(&["convert", source, text(&converted), "--to", "safetensors"]);
    // The embedding table, a layer of seven matrices and two norms, the last norm.
    let weights = 12 * 8 + (8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 8 * 8 + 2 * 8) + 8;
    assert_eq!(report["bytes"], json!(4 * weights));
    assert_eq!(report["source_bytes"], json!(4 * (weights + 12 * 8)));
    let [expected, found] =
        [source, text(&converted)].map(|model| logits(model, "1,2", folder.path()));
    assert_eq!(found, expected);
}
