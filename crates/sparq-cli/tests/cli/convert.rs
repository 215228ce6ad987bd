//! `sparq convert`: the folder gives the results of its source, and is complete or absent.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Checkpoint, contains, document, fails, has_fields, read_logits, run, words};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The folder of the embedded model as a checkpoint with a tokenizer.
pub const EMBEDDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/embedded");

/// Returns a temporary folder, and a path in it for a result.
fn place() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("converted").display().to_string();
    (folder, path)
}

/// Returns the names in a folder, including hidden ones.
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
    document(&format!(
        "logits --model {model} --tokens {tokens} --out {}",
        out.display()
    ));
    let (_, logits) = read_logits(&out);
    std::fs::remove_file(out).unwrap();
    logits
}

/// Asserts that two models have the same logits.
fn have_equal_logits(a: &str, b: &str, folder: &Path) {
    assert_eq!(logits(a, "1,2,3,4", folder), logits(b, "1,2,3,4", folder));
}

#[test]
fn converted_model_has_the_logits_of_its_source() {
    let mut source = Checkpoint::new();
    source.shard();
    let model = source.argument();
    let (folder, converted) = place();
    let report = document(&format!("convert {model} {converted}"));
    assert_eq!(report["stored_types"], json!(["f32"]));
    assert_eq!(report["bytes"], report["source_bytes"]);
    let back = folder.path().join("back");
    let back_name = back.display().to_string();
    document(&format!("convert {converted} {back_name} --to safetensors"));
    have_equal_logits(&converted, &model, folder.path());
    have_equal_logits(&back_name, &model, folder.path());
    let read = |folder: &Path| std::fs::read(folder.join("config.json")).unwrap();
    assert_eq!(read(&back), read(&source.path()));
    assert_eq!(names(folder.path()), ["back", "converted"]);
    assert_eq!(names(&back), ["config.json", "model.safetensors"]);
}

#[test]
fn generate_uses_the_settings_of_the_folder() {
    let (_folder, converted) = place();
    let report = document(&format!(
        "convert {EMBEDDED} {converted} --dtype f32 --rank 6 --top-k 40 --group-score logits"
    ));
    let expected = json!({
        "rank": 6, "top_k": 40, "local_window": 10, "sketch": "4bits",
        "mean_value": "paper", "group_score": "logits", "components": "sum_abs",
        "magnitude": "contribution", "rows": "int8",
    });
    assert_eq!(report["attention"], expected);
    let generate = |more: &str| {
        let prompt = "--prompt 'In the beginning' --max-new-tokens 4";
        document(&format!("generate --model {converted} {prompt} {more}"))["attention"]["sparq"]
            .take()
    };
    assert_eq!(generate(""), expected);
    let other = json!({"rank": 6, "top_k": 8, "local_window": 2, "sketch": "full"});
    has_fields(&generate("--top-k 8 --sketch full"), &other);
    // Converting the folder keeps the settings, and inspect shows them.
    let (_again, again) = place();
    let report = document(&format!("convert {converted} {again} --dtype f16"));
    has_fields(
        &report,
        &json!({"attention": expected, "stored_types": ["f16"]}),
    );
    assert_eq!(
        document(&format!("inspect {again}"))["model"]["attention"],
        expected
    );
}

#[test]
fn compression_stores_the_settings_of_a_budget() {
    let (_folder, converted) = place();
    let options = "--compression 1/8 --context 16384";
    let report = document(&format!("convert {EMBEDDED} {converted} {options}"));
    let budget = document(&format!("inspect {EMBEDDED}"));
    let mut rows = budget["budget"].as_array().unwrap().iter();
    let row = rows.find(|row| row["seq_len"] == 16384 && row["ratio"] == 0.125);
    let settings = &row.unwrap()["settings"];
    for key in ["rank", "top_k", "local_window"] {
        assert_eq!(report["attention"][key], settings[key], "{key}");
    }
}

#[test]
fn refused_conversion_leaves_nothing() {
    let mut source = Checkpoint::new();
    let (folder, converted) = place();
    let refused = |source: &str, more: &str, expected: &str| {
        fails(&format!("convert {source} {converted} {more}"), &[expected]);
        assert_eq!(names(folder.path()), [""; 0], "{expected}");
    };
    let path = source.argument();
    for (options, expected) in [
        (
            "--rank 99",
            "rank: expected 1 to 8 (the head_dim), found 99",
        ),
        ("--compression 1/8", "--context"),
        (
            "--compression 9/8 --context 64",
            "expected a share above 0 and at most 1",
        ),
        (
            "--to safetensors --rank 2",
            "--to safetensors: expected no settings of SparQ",
        ),
        (
            "--to safetensors --dtype q4",
            "--dtype: expected one of f32, f16, bf16 with --to safetensors, found q4",
        ),
    ] {
        refused(&path, options, expected);
    }
    refused("no/such/model", "", "no/such/model");
    // A missing tensor is found before any is read.
    let name = "model.norm.weight";
    let (shape, _) = source.tensors.remove(name).unwrap();
    source.write();
    let missing = format!("tensor {name:?}: expected shape [16], found no tensor of that name");
    refused(&path, "", &missing);
    source
        .tensors
        .insert(name.into(), (shape, vec![f32::NAN; 16]));
    source.write();
    refused(&path, "", "expected finite weights, found 16 of 16");
}

#[test]
fn folder_with_files_is_refused() {
    let source = Checkpoint::new();
    let (folder, converted) = place();
    std::fs::create_dir(&converted).unwrap();
    let line = format!("convert {} {converted}", source.argument());
    document(&line);
    fails(&line, &["remove it or use another name"]);
    assert_eq!(names(folder.path()), ["converted"]);
}

#[test]
fn damage_names_the_tensor() {
    let source = Checkpoint::new();
    let (_folder, converted) = place();
    document(&format!("convert {} {converted}", source.argument()));
    let path = Path::new(&converted).join("model.bpk");
    let mut bytes = std::fs::read(&path).unwrap();
    // The last byte of the last tensor by name.
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let damage = "model.bpk: tensor \"model.norm.weight\": expected the checksum";
    let line = format!("logits --model {converted} --tokens 1,2 --out {converted}.logits");
    fails(&line, &[damage, "convert the model again"]);
}

/// Returns whether a folder is a model that runs.
fn loads(folder: &Path) -> bool {
    let model = folder.display();
    let line = format!("logits --model {model} --tokens 1,2 --out {model}.logits");
    run(&line).status.success()
}

#[test]
fn killed_conversion_leaves_no_folder_that_loads() {
    let program = assert_cmd::cargo::cargo_bin("sparq");
    for (form, last) in [("sparq", "sparq.json"), ("safetensors", "config.json")] {
        let (mut unfinished, mut finished) = (0, 0);
        // The delay after the first file grows until a conversion finishes. A busy machine may
        // catch no unfinished one, and the loop begins again.
        let mut delay = Duration::ZERO;
        while unfinished == 0 || finished == 0 {
            assert!(unfinished + finished < 200, "{unfinished} unfinished");
            let (folder, converted) = place();
            let mut child = Command::new(&program)
                .args(words(&format!(
                    "convert {EMBEDDED} {converted} --to {form} --dtype f32"
                )))
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
            let whole = Path::new(&converted).exists();
            assert!(!done || whole);
            for name in names(folder.path()) {
                let path = folder.path().join(&name);
                if name == "converted" {
                    assert!(loads(&path), "after {delay:?}");
                } else {
                    unfinished += 1;
                    // Only a complete folder, just before it gets its name, may load.
                    let inside = names(&path);
                    let complete = inside.iter().any(|name| name == last);
                    assert!(complete || !loads(&path), "{inside:?}");
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
fn full_disk_leaves_nothing() {
    let program = assert_cmd::cargo::cargo_bin("sparq");
    let limits = [("sparq", "model.bpk"), ("safetensors", "model.safetensors")];
    for (form, file) in limits {
        let (folder, converted) = place();
        // The limit in KiB allows the first weights. Ignoring the signal of the limit makes writing
        // fail as on a full disk.
        let script = "trap '' XFSZ; ulimit -f 2000; exec \"$0\" \"$@\"";
        let line = format!("convert {EMBEDDED} {converted} --to {form}");
        let mut bash = Command::new("bash");
        bash.args(["-c", script]).arg(&program).args(words(&line));
        let output = bash.output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        contains(&message, &[&format!("{file}: cannot be written")]);
        assert_eq!(names(folder.path()), [""; 0]);
    }
}

#[test]
fn calibration_chooses_the_cheapest_settings() {
    let (folder, converted) = place();
    let book = folder.path().join("book.txt");
    let verse = "In the beginning God created the heaven and the earth. \
                 And the earth was without form, and void. ";
    std::fs::write(&book, verse.repeat(4)).unwrap();
    let convert = format!(
        "convert {EMBEDDED} {converted} --calibrate {}",
        book.display()
    );
    let report = document(&format!("{convert} --keep 0.9"));
    let measured = &report["calibration"];
    let grid = measured["grid"].as_array().unwrap();
    assert_eq!((grid.len(), &measured["tokens"]), (4 * 5, &json!(388)));
    let kept = |row: &Value| row["kept"].as_f64().unwrap();
    let cost = |row: &Value| row["share_of_dense"].as_f64().unwrap();
    let chosen = &grid[measured["chosen"].as_u64().unwrap() as usize];
    assert!(kept(chosen) >= 0.9);
    let cheaper = |row: &&Value| cost(row) < cost(chosen);
    assert!(grid.iter().filter(cheaper).all(|row| kept(row) < 0.9));
    assert!(grid.iter().any(|row| kept(row) < 0.9));
    assert!(grid.iter().any(|row| cost(row) > cost(chosen)));
    // More positions keep more at every rank.
    assert!(grid.chunks(5).all(|rows| rows.is_sorted_by_key(kept)));
    let layers = chosen["layers"].as_array().unwrap();
    assert_eq!((layers.len(), layers[0].as_array().unwrap().len()), (6, 4));

    for key in ["rank", "top_k", "local_window"] {
        assert_eq!(report["attention"][key], chosen[key], "{key}");
    }
    let manifest = std::fs::read(Path::new(&converted).join("sparq.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["attention"], report["attention"]);
    assert_eq!(manifest["calibration"]["kept"], chosen["kept"]);
    let inspected = document(&format!("inspect {converted}"));
    assert_eq!(inspected["model"]["attention"], report["attention"]);

    // The measurement of shared layers: all numbers of anchors, and more keep more.
    let anchors = measured["anchors"].as_array().unwrap();
    let number = |row: &Value| row["anchors"].as_u64().unwrap();
    assert!(anchors.iter().map(number).eq(1..=6));
    assert!(anchors.is_sorted_by_key(kept));
    assert_eq!(anchors[5]["anchor_of"], json!([0, 1, 2, 3, 4, 5]));
    assert_eq!(manifest["sharing"]["top_k"], 388 / 8);
    assert_eq!(manifest["sharing"]["kept"][3].as_array().unwrap().len(), 4);

    // Given settings stay.
    std::fs::remove_dir_all(&converted).unwrap();
    let report = document(&format!("{convert} --keep 0.5 --rank 12 --context 200"));
    assert_eq!(report["attention"]["rank"], 12);
    assert_eq!(report["calibration"]["tokens"], 200);
}

#[test]
fn layers_share_positions_by_the_calibration() {
    let (folder, converted) = place();
    let book = folder.path().join("book.txt");
    let verse = "In the beginning God created the heaven and the earth. \
                 And the earth was without form, and void. ";
    std::fs::write(&book, verse.repeat(4)).unwrap();
    let book = book.display().to_string();
    let convert = format!("convert {EMBEDDED} {converted} --top-k 32 --rank 16");
    fails(
        &format!("{convert} --anchors 2"),
        &["--calibrate TEXT", "found 2"],
    );
    let report = document(&format!(
        "{convert} --anchors 2 --calibrate {book} --keep 0.1"
    ));
    assert_eq!(report["attention"]["anchors"], 2);

    // The stored number is the default, and the measurement serves the original too.
    let generate = format!("generate --prompt-file {book} --method sparq --max-new-tokens 8");
    let share = |report: &Value| report["stats"]["share_of_dense"].as_f64().unwrap();
    let stored = document(&format!("{generate} --model {converted}"));
    assert_eq!(stored["attention"]["anchors"], 2);
    let all = document(&format!("{generate} --model {converted} --anchors all"));
    assert!(all["attention"].get("anchors").is_none());
    assert!(share(&stored) < share(&all));
    let manifest = Path::new(&converted).join("sparq.json");
    let given = format!(
        "{generate} --model {EMBEDDED} --calibration {}",
        manifest.display()
    );
    assert_eq!(document(&given)["text"], stored["text"]);
    let lossless = given.replace("--method sparq", "--method lossless --draft-tokens 2");
    let lossless = document(&lossless);
    let dense = document(&given.replace("--method sparq", "--method dense"));
    assert_eq!(lossless["text"], dense["text"]);

    let out = folder.path().join("runs.jsonl");
    let eval = |model: &str, methods: &str| {
        let (methods, out) = (format!("dense,{methods}"), out.display());
        format!(
            "eval --model {model} --task bpc --context 600 --examples 1 --budgets 1/4 \
             --methods {methods} --out {out}"
        )
    };
    let methods = "sparq-4bit:anchors=3,sparq-4bit:anchors=3,r=16,k=40,rows=int8";
    let report = document(&eval(&converted, methods));
    let rows = report["rows"].as_array().unwrap();
    let budgets: Vec<&Value> = rows.iter().map(|row| &row["budget"]).collect();
    assert_eq!(budgets, [&Value::Null, &Value::Null, &json!(0.25)]);
    assert!(rows[2]["transfer"].as_f64().unwrap() <= 0.25);
    assert!(rows[1]["transfer"].as_f64().unwrap() > 0.0);

    for (command, expected) in [
        (
            eval(EMBEDDED, methods),
            "has no measurement of shared layers",
        ),
        (
            format!("{generate} --anchors 3"),
            "has no measurement of shared layers",
        ),
        (
            format!("{generate} --model {converted} --anchors 0"),
            "at least 1, or all",
        ),
        (format!("{generate} --calibration {book}"), "--calibration"),
    ] {
        fails(&command, &[expected]);
    }
    // A measurement of another model.
    let text = std::fs::read_to_string(&manifest).unwrap();
    let mut changed: Value = serde_json::from_str(&text).unwrap();
    changed["sharing"]["heads"][2][0][0] = json!(7);
    std::fs::write(&manifest, changed.to_string()).unwrap();
    fails(
        &format!("{generate} --model {converted}"),
        &[
            "sparq.json: sharing: expected KV heads below",
            "layers 0 and 2, found 7",
        ],
    );
}

#[test]
fn calibration_refuses_unusable_texts() {
    let (folder, converted) = place();
    let book = folder.path().join("book.txt");
    let refused = |more: &str, expected: &str| {
        let options = format!("--calibrate {} {more}", book.display());
        fails(
            &format!("convert {EMBEDDED} {converted} {options}"),
            &[expected],
        );
        assert!(!Path::new(&converted).exists());
    };
    refused("", "book.txt: expected a text file in UTF-8");
    std::fs::write(&book, "too short").unwrap();
    refused(
        "",
        "book.txt: expected at least 64 tokens within the context, found 9",
    );
    let verse = "In the beginning God created the heaven and the earth. ";
    std::fs::write(&book, verse.repeat(4)).unwrap();
    let unreachable = "--keep: expected settings that keep 1 of the attention, found at most 0.";
    refused("--keep 1", unreachable);
    refused(
        "--to safetensors",
        "--to safetensors: expected no settings of SparQ",
    );
    refused("--compression 1/8 --context 100", "cannot be used with");
    assert_eq!(names(folder.path()), ["book.txt"]);
}

#[test]
fn q8_model_is_close_to_its_source() {
    let (folder, converted) = place();
    let report = document(&format!("convert {EMBEDDED} {converted} --dtype q8"));
    assert_eq!(report["stored_types"], json!(["f16", "q8"]));
    let size = |report: &Value, key: &str| report[key].as_f64().unwrap();
    // 34 bytes for 32 weights of 16 bits.
    let share = size(&report, "bytes") / size(&report, "source_bytes");
    assert!(share > 0.53 && share < 0.54, "{share}");
    // "In the beginning"
    let tokens = "73,110,32,116,104,101,32,98,101,103,105,110,110,105,110,103";
    let expected = logits(EMBEDDED, tokens, folder.path());
    let found = logits(&converted, tokens, folder.path());
    let differences = expected.iter().zip(&found).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0, f32::max);
    assert!(worst > 0.0 && worst < 0.5, "{worst}");
}

#[test]
fn blocks_are_multiplied_as_stored() {
    let tokens = "73,110,32,116,104,101,32,98,101,103,105,110,110,105,110,103";
    // 8.5 and 4.5 bits, and a bit more where rows are not whole blocks of 256.
    for (dtype, least, most, error) in [("q8_0", 0.53, 0.54, 0.7), ("q4_k", 0.28, 0.33, 8.0)] {
        let (folder, converted) = place();
        let report = document(&format!("convert {EMBEDDED} {converted} --dtype {dtype}"));
        let types = report["stored_types"].as_array().unwrap();
        assert!(types.contains(&json!(dtype)), "{types:?}");
        let size = |key: &str| report[key].as_f64().unwrap();
        let share = size("bytes") / size("source_bytes");
        assert!(share > least && share < most, "{dtype}: {share}");
        let expected = logits(EMBEDDED, tokens, folder.path());
        let found = logits(&converted, tokens, folder.path());
        let differences = expected.iter().zip(&found).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, f32::max);
        assert!(worst > 0.0 && worst < error, "{dtype}: {worst}");
    }
}

#[test]
fn attention_masks_are_left_out() {
    let source = Checkpoint::new();
    let path = source.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mask = TensorView::new(Dtype::BOOL, vec![2, 2], &[1, 0, 1, 1]).unwrap();
    let mask = [("model.layers.0.self_attn.mask".to_owned(), mask)];
    let tensors = file.tensors().into_iter().chain(mask);
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let (folder, converted) = place();
    let report = document(&format!("convert {} {converted}", source.argument()));
    assert_eq!(report["stored_types"], json!(["f32"]));
    have_equal_logits(&converted, &source.argument(), folder.path());
}

#[test]
fn tied_weights_of_pytorch_are_stored_once() {
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/torch/llama"
    );
    let (folder, converted) = place();
    let report = document(&format!("convert {source} {converted} --to safetensors"));
    // The embedding table, a layer of seven matrices and two norms, the last norm.
    let weights = 12 * 8 + (8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 8 * 8 + 2 * 8) + 8;
    assert_eq!(report["bytes"], json!(4 * weights));
    assert_eq!(report["source_bytes"], json!(4 * (weights + 12 * 8)));
    have_equal_logits(&converted, source, folder.path());
}
