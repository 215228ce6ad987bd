//! Converting every family: equal logits, and equal tensors after converting back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use safetensors::SafeTensors;
use sparq_models::checkpoint::{Checkpoint, Conversion, StoredType};
use sparq_tests::*;

/// Returns the names of all fixtures.
fn cases() -> Vec<String> {
    let entries = std::fs::read_dir(fixture("hf")).unwrap();
    let mut cases: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    cases.sort();
    assert!(cases.len() >= 11, "{cases:?}");
    cases
}

fn logits(checkpoint: &Checkpoint, case: &str, device: &Device) -> Vec<f32> {
    let expected = Expected::read(&format!("hf/{case}/expected.safetensors"));
    prefill_logits(&load(checkpoint, device), &expected)
}

/// Returns the bytes of all tensors in the weight files of a folder.
fn weights(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut weights = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let bytes = std::fs::read(&path).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let tensors = file.tensors().into_iter();
            weights.extend(tensors.map(|(name, view)| (name, view.data().to_vec())));
        }
    }
    weights
}

#[test]
fn conversion_keeps_logits_and_tensors() {
    for case in cases() {
        let source = fixture(&format!("hf/{case}"));
        let original = Arc::new(Checkpoint::open(&source).unwrap());
        let converted = tempfile::tempdir().unwrap();
        Conversion::new(original.clone())
            .write(converted.path())
            .unwrap();
        let mapped = Arc::new(Checkpoint::open(converted.path()).unwrap());
        for device in devices() {
            let [found, expected] =
                [&mapped, &original].map(|checkpoint| logits(checkpoint, &case, &device));
            assert_eq!(found, expected, "{case}");
        }
        let back = tempfile::tempdir().unwrap();
        Conversion::new(mapped)
            .write_safetensors(back.path())
            .unwrap();
        assert_eq!(weights(back.path()), weights(&source), "{case}");
    }
}

#[test]
fn blank_checkpoint_builds_every_family() {
    for case in cases() {
        let original = Checkpoint::open(&fixture(&format!("hf/{case}"))).unwrap();
        let blank = original.blank().unwrap();
        for device in devices() {
            drop(load(&blank, &device));
            drop(load(&original, &device));
        }
        assert!(blank.unused().eq(original.unused()), "{case}");
    }
}

#[test]
fn q8_keeps_logits_of_every_family_close() {
    for case in cases() {
        let original = Arc::new(Checkpoint::open(&fixture(&format!("hf/{case}"))).unwrap());
        let converted = tempfile::tempdir().unwrap();
        let conversion = Conversion::new(original.clone()).with_dtype(Some(StoredType::Q8));
        conversion.write(converted.path()).unwrap();
        let converted = Checkpoint::open(converted.path()).unwrap();
        for device in devices() {
            let found = logits(&converted, &case, &device);
            let expected = logits(&original, &case, &device);
            let largest = expected.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            let worst = max_difference(&found, &expected);
            println!("{case}: {worst} of {largest}");
            // A router may choose other experts.
            let share = match case.as_str() {
                "mixtral" | "qwen3_moe" => 0.3,
                _ => 0.1,
            };
            assert!(worst < share * largest, "{case}: {worst} of {largest}");
        }
    }
}
