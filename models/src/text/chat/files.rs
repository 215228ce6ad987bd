//! Where a checkpoint keeps its chat templates.

use std::{collections::BTreeMap, io, path::Path};

use serde_json::Value;

use super::{error::ChatTemplateError, template::ChatTemplate};
use crate::checkpoint::read_small;
use crate::text::config_file::{ConfigFile, ConfigFileError, ConfigFiles};

/// The tokens that templates know by the names of these entries.
const SPECIAL_TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// The name of the template for conversations without tools or documents.
const DEFAULT: &str = "default";

/// Templates by name, each with the file that it stands in and its source.
type Templates = BTreeMap<String, (String, String)>;

impl ChatTemplate {
    /// Reads the chat template of a checkpoint's folder or GGUF file; `None` when it has none, as base models don't.
    ///
    /// A template is looked for in chat_template.jinja and additional_chat_templates/NAME.jinja, then in chat_template.json, then as
    /// `chat_template` of tokenizer_config.json (one template, or a list of `name` and `template`). Without a `name` it is
    /// the one called `default`, or the only one. Special tokens come from tokenizer_config.json, then special_tokens_map.json.
    ///
    /// # Errors
    /// When a file cannot be read, is not what it has to be, or there is no template called `name`.
    pub fn from_folder(
        folder: &Path,
        name: Option<&str>,
    ) -> Result<Option<Self>, ChatTemplateError> {
        let files = ConfigFiles::open(folder)?;
        let config = files.read("tokenizer_config.json")?;
        let mut templates = Templates::new();
        // The later ones replace the earlier.
        if let Some(config) = &config {
            read_json(config, &mut templates)?;
        }
        if let Some(file) = files.read("chat_template.json")? {
            read_json(&file, &mut templates)?;
        }
        if let ConfigFiles::Folder(folder) = &files {
            read_jinja(&folder.join("chat_template.jinja"), DEFAULT, &mut templates)?;
            read_additional(&folder.join("additional_chat_templates"), &mut templates)?;
        }

        let chosen = match (name, templates.len()) {
            (None, 0) => return Ok(None),
            (None, 1) => templates.values().next(),
            (name, _) => templates.get(name.unwrap_or(DEFAULT)),
        };
        let Some((origin, source)) = chosen else {
            return Err(ChatTemplateError::UnknownName {
                folder: folder.display().to_string(),
                expected: name.unwrap_or(DEFAULT).to_owned(),
                available: templates.into_keys().collect(),
            });
        };
        let map = files.read("special_tokens_map.json")?;
        let mut tokens = Vec::new();
        for key in SPECIAL_TOKENS {
            for file in [&config, &map].into_iter().flatten() {
                if let Some(token) = file.token(key)? {
                    tokens.push((key, token));
                    break;
                }
            }
        }
        Self::new(source, origin, tokens).map(Some)
    }
}

/// Takes the entry `chat_template`, which is one template or a list of them.
fn read_json(file: &ConfigFile, templates: &mut Templates) -> Result<(), ConfigFileError> {
    const KEY: &str = "chat_template";
    let expected = "a template or a list of objects with \"name\" and \"template\"";
    let Some(value) = file.get(KEY) else {
        return Ok(());
    };
    let origin = format!("{}: {KEY:?}", file.path().display());
    match value {
        Value::String(source) => {
            templates.insert(DEFAULT.to_owned(), (origin, source.clone()));
        }
        Value::Array(list) => {
            for entry in list {
                let text = |key| entry.get(key).and_then(Value::as_str);
                let (Some(name), Some(source)) = (text("name"), text("template")) else {
                    return Err(file.error(KEY, expected, entry));
                };
                let origin = format!("{origin} {name:?}");
                templates.insert(name.to_owned(), (origin, source.to_owned()));
            }
        }
        other => return Err(file.error(KEY, expected, other)),
    }
    Ok(())
}

/// Takes a file that is a template, if it is there.
fn read_jinja(path: &Path, name: &str, templates: &mut Templates) -> Result<(), ConfigFileError> {
    let read = read_small(path).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    });
    let source = match read {
        Ok(source) => source,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(ConfigFileError::Read {
                path: path.to_owned(),
                error,
            });
        }
    };
    let origin = path.display().to_string();
    templates.insert(name.to_owned(), (origin, source));
    Ok(())
}

/// Takes every NAME.jinja of a folder, if it is there.
fn read_additional(folder: &Path, templates: &mut Templates) -> Result<(), ConfigFileError> {
    let unreadable = |error| ConfigFileError::Read {
        path: folder.to_owned(),
        error,
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(error)),
    };
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let is_template = path
            .extension()
            .is_some_and(|extension| extension == "jinja");
        if let (true, Some(name)) = (is_template, path.file_stem().and_then(|name| name.to_str())) {
            read_jinja(&path, name, templates)?;
        }
    }
    Ok(())
}
