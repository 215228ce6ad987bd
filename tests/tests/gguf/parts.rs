//! Models in several files, as `llama-gguf-split` writes them.

use std::fs;
use std::path::{Path, PathBuf};

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
                    let [found, expected] = [&parts, &whole]
                        .map(|checkpoint| super::read(checkpoint, name, [rows, columns]));
                    assert_eq!(found, expected, "{name} in {count} parts");
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

#[test]
fn missing_and_mismatched_parts_are_named() {
    let path = |folder: &TempDir, part| -> PathBuf { folder.path().join(name(part, 3)) };
    let error = |path: &Path| Checkpoint::open(path).unwrap_err().to_string();
    let changed = |change: fn(usize, &mut GgufFile)| error(split(&llama(), 3, change).path());

    let folder = split(&llama(), 3, |_, _| ());
    let found = error(&path(&folder, 2));
    assert_contains(
        &found,
        &["\"split.no\": expected 0 (the first part), found 1"],
    );
    fs::remove_file(path(&folder, 2)).unwrap();
    let missing = "00002-of-00003.gguf as well, found no such file";
    assert_contains(&error(folder.path()), &["00001-of", missing]);
    fs::remove_file(path(&folder, 1)).unwrap();
    let second = "expected 0 (the first part), found 2";
    assert_contains(&error(folder.path()), &["00003-of", second]);

    let folder = split(&llama(), 3, |_, _| ());
    fs::copy(path(&folder, 3), path(&folder, 2)).unwrap();
    let wrong_number = "\"split.no\": expected 1, found 2";
    assert_contains(&error(folder.path()), &["00002-of", wrong_number]);

    let of_another = changed(|part, file| {
        if part == 2 {
            file.set("split.count", Meta::U32(4));
        }
    });
    let expected = "\"split.count\": expected 3, found 4";
    assert_contains(&of_another, &["00003-of", expected]);

    let one_less = changed(|part, file| {
        if part == 1 {
            file.tensors.pop();
        }
    });
    assert_contains(&one_less, &["split.tensors.count", "in all parts together"]);

    let many = changed(|_, file| file.set("split.count", Meta::U32(u32::MAX)));
    assert_contains(&many, &["split.count", "the first of 4294967295 parts"]);

    // Files of two models are ambiguous.
    let folder = split(&llama(), 2, |_, _| ());
    let add = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    add("config.json", b"{}");
    add(
        "other.gguf",
        &fs::read(folder.path().join(name(1, 2))).unwrap(),
    );
    let all = "found model-00001-of-00002.gguf, other.gguf; name one of the files";
    assert_contains(&error(folder.path()), &[all]);
}
