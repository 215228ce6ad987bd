//! The tokens that end a text, as `generation_config.json` adds them to `config.json`.

use super::{ConfigError, fields::Fields};
use crate::checkpoint::{Checkpoint, read_json_if_present};

/// The `eos_token_id` of the `generation_config.json` beside a checkpoint; none if there is no such file.
///
/// Chat models end a turn with another token than a text, and tell so only there.
pub(super) fn eos_token_ids(checkpoint: &Checkpoint) -> Result<Vec<u32>, ConfigError> {
    let Some(dir) = checkpoint.dir() else {
        return Ok(Vec::new());
    };
    let path = dir.join("generation_config.json");
    match read_json_if_present(&path)? {
        Some(config) => Fields::new(&config, &path)?.token_ids("eos_token_id"),
        None => Ok(Vec::new()),
    }
}
