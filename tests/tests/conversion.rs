//! Every family as a converted model: the same logits, and the same tensors on the way back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, FloatDType};
use safetensors::SafeTensors;
use sparq::Method;
use sparq_models::CausalLm;
use sparq_models::checkpoint::{Checkpoint, Conversion, StoredType};
use sparq_tests::*;

/// The checkpoints that there are.
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
    let model = load(checkpoint, device);
    let (shape, ids) = Expected::read(&format!("hf/{case}/expected.safetensors")).ints("input_ids");
    let mut cache = model
        .new_cache(shape[0], 16, FloatDType::F32, &Method::DENSE)
        .unwrap();
    let logits = model.prefill(tokens(&ids, shape[0], device), &mut cache, shape[1]);
    values(logits.unwrap())
}

/// Bytes of all tensors of the files of a folder.
fn weights(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut weights = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let bytes = std::fs::read(&path).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            weights.extend(
                file.tensors()
                    .into_iter()
                    .map(|(name, view)| (name, view.data().to_vec())),
            );
        }
    }
    weights
}

#[test]
fn every_family_is_the_same_as_a_converted_model_and_after_the_way_back() {
    for case in cases() {
        let source = fixture(&format!("hf/{case}"));
        let original = Arc::new(Checkpoint::open(&source).unwrap());
        let converted = tempfile::tempdir().unwrap();
        Conversion::new(original.clone())
            .write(converted.path())
            .unwrap();
        let mapped = Arc::new(Checkpoint::open(converted.path()).unwrap());
        for device in devices() {
            assert_eq!(
                logits(&mapped, &case, &device),
                logits(&original, &case, &device),
                "{case}"
            );
        }
        let back = tempfile::tempdir().unwrap();
        Conversion::new(mapped)
            .write_safetensors(back.path())
            .unwrap();
        assert_eq!(weights(back.path()), weights(&source), "{case}");
    }
}

#[test]
fn every_family_can_be_built_without_its_weights() {
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
fn every_family_runs_in_8_bits() {
    for case in cases() {
        let original = Arc::new(Checkpoint::open(&fixture(&format!("hf/{case}"))).unwrap());
        let converted = tempfile::tempdir().unwrap();
        let conversion = Conversion::new(original.clone()).with_dtype(Some(StoredType::Q8));
        conversion.write(converted.path()).unwrap();
        let converted = Checkpoint::open(converted.path()).unwrap();
        for device in devices() {
            let (found, expected) = (
                logits(&converted, &case, &device),
                logits(&original, &case, &device),
            );
            let largest = expected
                .iter()
                .fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
            let worst = max_difference(&found, &expected);
            assert!(worst < 0.05 * largest, "{case}: {worst} of {largest}");
        }
    }
}
