//! `sparq cache`: shows and clears the compiled kernels and tuning results on disk.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use sparq_device::kernel_cache;
use sparq_output::numbers::binary_bytes;
use sparq_output::table::{Cell, Table};

use crate::exit::Outcome;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  sparq cache                          show the folder and its size
  sparq cache --clear                  delete compiled kernels and tuning results
  SPARQ_CACHE_DIR=/scratch sparq ...   keep them in another folder";

/// The arguments of `sparq cache`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CacheArgs {
    /// Delete them. The next start on a GPU compiles its kernels again
    #[arg(long)]
    clear: bool,
}

#[derive(Serialize)]
struct Document {
    folder: PathBuf,
    cleared: bool,
    kinds: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    files: u64,
    bytes: u64,
}

/// Shows what the cache folder holds, and deletes it with `--clear`.
///
/// # Errors
/// If there is no home folder, or a file cannot be read or deleted.
pub fn run(args: &CacheArgs, out: Output) -> Result<Outcome> {
    let folder = kernel_cache::folder()
        .context("no home folder was found for the cache: set SPARQ_CACHE_DIR")?;
    let name = folder.display().to_string();
    let found = kernel_cache::contents(&folder).with_context(|| name.clone())?;
    if args.clear {
        kernel_cache::clear(&folder).with_context(|| name.clone())?;
    }
    let mut table = Table::new(["cache", "files", "size"]);
    for kind in &found {
        let files = Cell::number(kind.files.to_string(), kind.files as f64);
        let size = Cell::number(binary_bytes(kind.bytes as f64), kind.bytes as f64);
        table.row([kind.name.clone().into(), files, size]);
    }
    if !table.is_empty() {
        out.text(&table.text())?;
    }
    let bytes: u64 = found.iter().map(|kind| kind.bytes).sum();
    let verb = if args.clear { "deleted" } else { "total" };
    out.line(&format!("{verb} {} in {name}", binary_bytes(bytes as f64)))?;
    let row = |kind: kernel_cache::Kind| Row {
        name: kind.name,
        files: kind.files,
        bytes: kind.bytes,
    };
    out.document(&Document {
        folder,
        cleared: args.clear,
        kinds: found.into_iter().map(row).collect(),
    })?;
    Ok(Outcome::Done)
}
