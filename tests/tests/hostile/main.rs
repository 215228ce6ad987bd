//! Files from strangers: what the fuzzer starts from is read, and what it has found stays found.

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

/// For these tests, too: what asks for more memory than that ends them.
#[global_allocator]
static ALLOCATOR: fuzz::Limited = fuzz::Limited;

/// More than any input takes, on a busy machine and without optimisation.
const TIME: Duration = Duration::from_secs(20);

/// A path under the folder of the fuzzer.
fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz")
        .join(path)
}

/// The files of a folder by their paths below it, target first.
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

/// Runs an input, named by its path, whether it is taken for what it should be.
fn run(path: &str, data: &[u8]) -> bool {
    let (target, _) = path.split_once('/').unwrap();
    let start = Instant::now();
    let accepted = fuzz::run(target, data);
    assert!(start.elapsed() < TIME, "{path}: {:?}", start.elapsed());
    accepted
}

#[test]
fn every_seed_is_read() {
    let seeds = files(&folder("seeds"));
    for (target, _) in fuzz::TARGETS {
        assert!(
            seeds.keys().any(|path| path.starts_with(target)),
            "{target}"
        );
    }
    for (path, data) in seeds {
        assert!(run(&path, &data), "{path} is refused");
    }
}

#[test]
fn what_was_found_once_is_an_answer_or_an_error() {
    let found = files(&folder("regressions"));
    assert!(!found.is_empty());
    for (path, data) in found {
        run(&path, &data);
    }
}

/// With SPARQ_WRITE_SEEDS in the environment they are written.
#[test]
fn the_seeds_in_the_tree_are_those_that_are_made_here() {
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
        assert!(made[path] == *data, "{path} is another");
    }
}
