//! `sparq check`: reference cases, random cases and failures.

use serde_json::json;

use crate::support::{contains, document, has_fields, run, stdout};

#[test]
fn reference_cases_pass() {
    let found = document("check");
    assert_eq!(found["failed"], 0);
    assert!(found["outcomes"].as_array().unwrap().len() >= 10);
    let text = stdout("check");
    assert!(text.contains("pass") && !text.contains("FAIL"), "{text}");
}

#[test]
fn random_cases_pass_and_repeat_by_seed() {
    let three = document("check --random 3 --seed 5 --size small");
    has_fields(&three, &json!({"passed": 3, "failed": 0}));
    let one = document("check --random 1 --seed 7 --size small");
    assert_eq!(one["outcomes"][0], three["outcomes"][2]);
    assert_eq!(one["outcomes"][0]["name"], "7");
    let text = stdout("check --random 2 --size small --dtype f32");
    assert!(text.ends_with("2 passed, 0 failed\n"), "{text}");
}

#[test]
fn failing_case_has_exit_code_1() {
    let fixture = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../sparq-conformance/fixtures/authors/14_mha_S1.safetensors"
    );
    let mut bytes = std::fs::read(fixture).unwrap();
    let header_len = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let offset = header["output"]["data_offsets"][0].as_u64().unwrap() as usize;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("case.safetensors");
    let line = format!("check --fixtures {}", folder.path().display());
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(document(&line)["passed"], 1);

    // Changes one expected number far beyond any rounding.
    bytes[8 + header_len + offset..][..4].copy_from_slice(&1000.0_f32.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let output = run(&line);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    contains(&text, &["FAIL: output", "0 passed, 1 failed"]);
}
