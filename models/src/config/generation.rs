//! The tokens that end a text, as `generation_config.json` adds them to `config.json`.

use super::{ConfigError, fields::Fields};
use crate::checkpoint::{Checkpoint, read_json_if_present};

/// Adds the `eos_token_id` of the `generation_config.json` beside a checkpoint; nothing if there is no such file.
///
/// Chat models end a turn with another token than a text, and tell so only there.
pub(crate) fn add_eos_token_ids(
    checkpoint: &Checkpoint,
    ids: &mut Vec<u32>,
) -> Result<(), ConfigError> {
    let Some(dir) = checkpoint.dir() else {
        return Ok(());
    };
    let path = dir.join("generation_config.json");
    let Some(config) = read_json_if_present(&path)? else {
        return Ok(());
    };
    for id in Fields::new(&config, &path)?.token_ids("eos_token_id")? {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(())
}
