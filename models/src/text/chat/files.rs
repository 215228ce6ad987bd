//! Finding the chat template of a checkpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
};

use serde_json::Value;

use super::{error::ChatTemplateError, template::ChatTemplate};
use crate::checkpoint::{describe, gguf::CHAT_BEGINS_WITH_BOS, read_small};
use crate::config::ConfigError;
use crate::text::config_file::{ConfigFile, ConfigFiles};

/// The entries with special tokens, which are variables of templates.
const SPECIAL_TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// The name of the template for plain conversations, without tools or documents.
const DEFAULT: &str = "default";

/// Templates by name.
type Templates = BTreeMap<String, Source>;

/// One template.
struct Source {
    file: String,
    /// The place in the file, for messages.
    origin: String,
    text: String,
}

impl ChatTemplate {
    /// Reads a chat template from a checkpoint's folder or GGUF file. Returns `None` if it has
    /// none, like most base models.
    ///
    /// Templates come from these files, the first one taking precedence:
    /// 1. chat_template.jinja and additional_chat_templates/NAME.jinja,
    /// 2. `chat_template` in chat_template.json,
    /// 3. `chat_template` in tokenizer_config.json.
    ///
    /// `chat_template` is one template or a list of objects with `name` and `template`. Without
    /// `name`, the template named `default` or the only one is read. Special tokens come from
    /// tokenizer_config.json, then from special_tokens_map.json.
    ///
    /// # Errors
    /// If a file cannot be read or is malformed, or if no template has this `name`.
    pub fn from_folder(
        folder: &Path,
        name: Option<&str>,
    ) -> Result<Option<Self>, ChatTemplateError> {
        let files = ConfigFiles::open(folder)?;
        let config = files.read("tokenizer_config.json")?;
        let mut templates = Templates::new();
        // Later files replace the templates of earlier ones.
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
        let Some(Source { origin, text, .. }) = chosen else {
            let files: BTreeSet<_> = templates.values().map(|source| &*source.file).collect();
            return Err(ChatTemplateError::UnknownName {
                origin: match files.is_empty() {
                    true => folder.display().to_string(),
                    false => Vec::from_iter(files).join(", "),
                },
                expected: name.unwrap_or(DEFAULT).to_owned(),
                available: templates.into_keys().collect(),
            });
        };
        let map = files.read("special_tokens_map.json")?;
        let mut tokens = Vec::new();
        for key in SPECIAL_TOKENS {
            for file in [&config, &map].into_iter().flatten() {
                if let Some(token) = file.fields()?.token(key)? {
                    tokens.push((key, token));
                    break;
                }
            }
        }
        let template = Self::new(text, origin, tokens)?;
        let begins_with_bos = match &config {
            Some(config) => config.fields()?.switch(CHAT_BEGINS_WITH_BOS)?,
            None => None,
        };
        Ok(Some(match begins_with_bos {
            Some(true) => template.with_bos(),
            _ => template,
        }))
    }
}

/// Adds the entry `chat_template`, which is one template or a list of them.
fn read_json(file: &ConfigFile, templates: &mut Templates) -> Result<(), ConfigError> {
    const KEY: &str = "chat_template";
    let expected = "a template or a list of objects with \"name\" and \"template\"";
    let fields = file.fields()?;
    let Some(value) = fields.get(KEY) else {
        return Ok(());
    };
    let file = file.path().display().to_string();
    let origin = format!("{file}: {KEY:?}");
    match value {
        Value::String(text) => {
            let text = text.clone();
            templates.insert(DEFAULT.to_owned(), Source { file, origin, text });
        }
        Value::Array(list) => {
            for entry in list {
                let text = |key| entry.get(key).and_then(Value::as_str);
                let (Some(name), Some(source)) = (text("name"), text("template")) else {
                    return Err(fields.error(KEY, expected, describe(entry)));
                };
                let source = Source {
                    file: file.clone(),
                    origin: format!("{origin} {name:?}"),
                    text: source.to_owned(),
                };
                templates.insert(name.to_owned(), source);
            }
        }
        _ => return Err(fields.unexpected(KEY, expected)),
    }
    Ok(())
}

/// Adds the template in the file `path`, if it exists.
fn read_jinja(path: &Path, name: &str, templates: &mut Templates) -> Result<(), ConfigError> {
    let read = read_small(path).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    });
    let text = match read {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(ConfigError::Read {
                path: path.to_owned(),
                error,
            });
        }
    };
    let file = path.display().to_string();
    let origin = file.clone();
    templates.insert(name.to_owned(), Source { file, origin, text });
    Ok(())
}

/// Adds every NAME.jinja of a folder, if it exists.
fn read_additional(folder: &Path, templates: &mut Templates) -> Result<(), ConfigError> {
    let unreadable = |error| ConfigError::Read {
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
