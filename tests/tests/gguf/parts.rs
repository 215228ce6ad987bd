//! Models in several files, as `llama-gguf-split` writes them.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType};
use sparq_models::checkpoint::Checkpoint;
use sparq_models::text::TextTokenizer;
use sparq_tests::*;
use tempfile::TempDir;

use super::vocabularies::byte_level;
use super::writer::{GgufFile, Meta};

fn name(number: usize, count: usize) -> String {
    format!("model-{number:05}-of-{count:05}.gguf")
}

/// Writes a model in `count` parts, each after `change`.
fn split(file: &GgufFile, count: usize, change: impl Fn(usize, &mut GgufFile)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let size = file.tensors.len().div_ceil(count);
    for part in 0..count {
        let mut own = GgufFile::default();
        if part == 0 {
            own.metadata = file.metadata.clone();
        }
        own.set("split.no", Meta::U32(part as u32));
        own.set("split.count", Meta::U32(count as u32));
        own.set("split.tensors.count", Meta::U32(file.tensors.len() as u32));
        let tensors = file.tensors.chunks(size).nth(part);
        own.tensors = tensors.unwrap_or_default().to_vec();
        change(part, &mut own);
        fs::write(folder.path().join(name(part + 1, count)), own.bytes()).unwrap();
    }
    folder
}

fn llama() -> GgufFile {
    GgufFile::from_folder(&fixture("hf/llama3"))
}

#[test]
fn parts_equal_the_whole() {
    let file = llama();
    let whole = super::open(&file);
    for count in [2, 3, file.tensors.len() + 1] {
        let folder = split(&file, count, |_, _| ());
        let first = folder.path().join(name(1, count));
        for path in [folder.path(), &first] {
            let parts = Checkpoint::open(path).unwrap();
            assert_eq!(parts.config(), whole.config());
            assert!(parts.names().eq(whole.names()));
            for name in whole.names() {
                let shape = whole.entry(name).unwrap().shape;
                assert_eq!(parts.entry(name).unwrap().shape, shape, "{name}");
                if let &[rows, columns] = shape {
                    let read = |checkpoint: &Checkpoint| {
                        let (device, dtype) = (Device::default(), FloatDType::F32);
                        values(
                            checkpoint
                                .tensor(name, [rows, columns], dtype, &device)
                                .unwrap(),
                        )
                    };
                    assert_eq!(read(&parts), read(&whole), "{name} in {count} parts");
                }
            }
        }
    }
}

#[test]
fn tokenizer_is_read_from_the_first_part() {
    let folder = split(&byte_level("gpt-2"), 2, |_, _| ());
    assert!(TextTokenizer::from_folder(folder.path()).is_ok());
}

#[track_caller]
fn assert_error(path: &Path, parts: &[&str]) {
    let message = Checkpoint::open(path).unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn missing_and_mismatched_parts_are_named() {
    let path = |folder: &TempDir, part| -> PathBuf { folder.path().join(name(part, 3)) };

    let folder = split(&llama(), 3, |_, _| ());
    assert_error(
        &path(&folder, 2),
        &["\"split.no\": expected 0 (the first part), found 1"],
    );
    fs::remove_file(path(&folder, 2)).unwrap();
    assert_error(
        folder.path(),
        &[
            "00001-of",
            "00002-of-00003.gguf as well, found no such file",
        ],
    );
    fs::remove_file(path(&folder, 1)).unwrap();
    assert_error(
        folder.path(),
        &["00003-of", "expected 0 (the first part), found 2"],
    );

    let folder = split(&llama(), 3, |_, _| ());
    fs::copy(path(&folder, 3), path(&folder, 2)).unwrap();
    assert_error(
        folder.path(),
        &["00002-of", "\"split.no\": expected 1, found 2"],
    );

    let of_another = |part: usize, file: &mut GgufFile| {
        if part == 2 {
            file.set("split.count", Meta::U32(4));
        }
    };
    let folder = split(&llama(), 3, of_another);
    assert_error(
        folder.path(),
        &["00003-of", "\"split.count\": expected 3, found 4"],
    );

    let one_less = |part: usize, file: &mut GgufFile| {
        if part == 1 {
            file.tensors.pop();
        }
    };
    let folder = split(&llama(), 3, one_less);
    assert_error(
        folder.path(),
        &["split.tensors.count", "in all parts together"],
    );

    let many = |_: usize, file: &mut GgufFile| file.set("split.count", Meta::U32(u32::MAX));
    let folder = split(&llama(), 3, many);
    assert_error(
        folder.path(),
        &["split.count", "the first of 4294967295 parts"],
    );

    // Files of two models are ambiguous.
    let folder = split(&llama(), 2, |_, _| ());
    fs::write(folder.path().join("config.json"), b"{}").unwrap();
    fs::copy(
        folder.path().join(name(1, 2)),
        folder.path().join("other.gguf"),
    )
    .unwrap();
    assert_error(
        folder.path(),
        &["found model-00001-of-00002.gguf, model-00002-of-00002.gguf, other.gguf"],
    );
}
