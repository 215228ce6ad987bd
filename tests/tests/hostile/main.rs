//! Untrusted files: the seeds and the regressions of the fuzzer.
//!
//! A process of its own, because it replaces the allocator by one with a limit.

#[path = "../../../fuzz/src/lib.rs"]
mod fuzz;
mod seeds;
#[path = "../gguf/vocabularies.rs"]
mod vocabularies;
#[path = "../gguf/writer.rs"]
#[allow(dead_code, reason = "the tests of GGUF use the rest")]
mod writer;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Aborts the tests if one allocates more than the limit of the fuzzer.
#[global_allocator]
static ALLOCATOR: fuzz::Limited = fuzz::Limited;

/// More time than any input takes, even on a busy machine and without optimisation.
const TIME: Duration = Duration::from_secs(20);

/// Returns a path in the folder of the fuzzer.
fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz")
        .join(path)
}

/// Returns the files of a folder by their paths in it, which begin with the target.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for (target, _) in fuzz::TARGETS {
        let Ok(entries) = fs::read_dir(folder.join(target)) else {
            continue;
        };
        for entry in entries {
            let entry = entry.unwrap();
            let name = format!("{target}/{}", entry.file_name().to_str().unwrap());
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    files
}

/// Runs the target of an input. Returns whether the input is accepted.
fn run(path: &str, data: &[u8]) -> bool {
    let (target, _) = path.split_once('/').unwrap();
    let start = Instant::now();
    let accepted = fuzz::run(target, data);
    assert!(start.elapsed() < TIME, "{path}: {:?}", start.elapsed());
    accepted
}

#[test]
fn seeds_are_accepted() {
    let seeds = files(&folder("seeds"));
    for (target, _) in fuzz::TARGETS {
        let mut paths = seeds.keys();
        assert!(paths.any(|path| path.starts_with(target)), "{target}");
    }
    for (path, data) in seeds {
        assert!(run(&path, &data), "{path} is refused");
    }
}

#[test]
fn regressions_do_not_panic() {
    let found = files(&folder("regressions"));
    assert!(!found.is_empty());
    for (path, data) in found {
        run(&path, &data);
    }
}

/// Writes the seeds if SPARQ_WRITE_SEEDS is set.
#[test]
fn seeds_in_the_repository_are_up_to_date() {
    let made = seeds::all();
    if std::env::var_os("SPARQ_WRITE_SEEDS").is_some() {
        for (path, data) in &made {
            let path = folder("seeds").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, data).unwrap();
        }
    }
    let found = files(&folder("seeds"));
    assert!(found.keys().eq(made.keys()));
    for (path, data) in &found {
        assert!(made[path] == *data, "{path} differs");
    }
}
