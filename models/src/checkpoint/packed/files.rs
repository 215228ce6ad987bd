//! The files beside the weights of a checkpoint, which a conversion copies.

use std::{io, path::Path};

use super::super::{
    Checkpoint, CheckpointError, base::Origin, gguf::Gguf, open::file_names, small_file::read_small,
};

/// The files with configuration, tokenizer and chat template, in all usual forms.
const NAMES: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
];

/// The folder of further chat templates.
const TEMPLATES: &str = "additional_chat_templates";

/// Reads the files of the checkpoint. Returns each with its path inside the folder. For a GGUF
/// file, returns the equivalent files.
pub(super) fn read(checkpoint: &Checkpoint) -> Result<Vec<(String, Vec<u8>)>, CheckpointError> {
    if let Some(folder) = checkpoint.dir() {
        return read_folder(folder);
    }
    let text = |value: &serde_json::Value| format!("{value:#}\n").into_bytes();
    let config = ("config.json".to_owned(), text(checkpoint.config()));
    if !matches!(checkpoint.origin, Origin::Gguf { .. }) {
        return Ok(vec![config]);
    }
    let gguf = Gguf::open(checkpoint.config_path())?;
    Ok(vec![
        config,
        (
            "tokenizer.json".into(),
            gguf.tokenizer()?.to_string().into_bytes(),
        ),
        (
            "tokenizer_config.json".into(),
            text(&gguf.tokenizer_config()?),
        ),
    ])
}

fn read_folder(folder: &Path) -> Result<Vec<(String, Vec<u8>)>, CheckpointError> {
    let mut names: Vec<String> = NAMES.map(str::to_owned).into();
    let templates = folder.join(TEMPLATES);
    if templates.is_dir() {
        let templates = file_names(&templates)?;
        let templates = templates
            .into_iter()
            .filter(|name| name.ends_with(".jinja"));
        names.extend(templates.map(|name| format!("{TEMPLATES}/{name}")));
    }
    let mut files = Vec::new();
    for name in names {
        if let Some(bytes) = read_file(&folder.join(&name))? {
            files.push((name, bytes));
        }
    }
    Ok(files)
}

/// Reads a file; `None` if there is none of that name.
pub(super) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    match read_small(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CheckpointError::read(path)(error)),
    }
}
