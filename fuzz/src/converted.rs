//! A converted model: two bytes with the length of `sparq.json`, that file, then `model.bpk`.

use std::fs;

use serde_json::Value;
use sparq_models::checkpoint::{Checkpoint, CheckpointError};

use super::{accepted, tensors};

/// The `config.json` with the checksum in the seeds.
const CONFIG: &[u8] = b"{}\n";

/// The most tensors whose checksums are corrected.
const TENSORS: usize = 8;

pub(super) fn run(data: &[u8]) -> bool {
    let Some((length, files)) = data.split_first_chunk::<2>() else {
        return false;
    };
    let (manifest, weights) = files
        .split_at_checked(u16::from_le_bytes(*length).into())
        .unwrap_or((files, &[]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    write("config.json", CONFIG);
    write("model.bpk", weights);
    let mut manifest = manifest.to_vec();
    for round in 0..=TENSORS {
        write("sparq.json", &manifest);
        let Some(checkpoint) = accepted(Checkpoint::open(folder.path()), path) else {
            return round > 0;
        };
        tensors::read(&checkpoint);
        match corrected(&checkpoint, &manifest) {
            Some(corrected) => manifest = corrected,
            None => break,
        }
    }
    true
}

/// Returns the manifest with a corrected checksum for the first changed tensor, so that its bytes
/// are read as well.
fn corrected(checkpoint: &Checkpoint, manifest: &[u8]) -> Option<Vec<u8>> {
    let Err(CheckpointError::Packed { what, found, .. }) = checkpoint.verify() else {
        return None;
    };
    let mut manifest: Value = serde_json::from_slice(manifest).ok()?;
    let name = what.strip_prefix("tensor \"")?.strip_suffix('"')?;
    manifest["tensors"][name]["crc32"] = u32::from_str_radix(&found, 16).ok()?.into();
    Some(manifest.to_string().into_bytes())
}
