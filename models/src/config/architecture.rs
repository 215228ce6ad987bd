//! The families of models: [`Architecture`].

use std::path::Path;

use serde_json::Value;

use super::{ConfigError, fields::Fields};
use crate::checkpoint::Checkpoint;

/// A family of models that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2, 3 and 3.x, and everything else that is published as a `LlamaForCausalLM`.
    Llama,
}

/// One line per family: its name in `architectures`, and in `model_type`.
const SUPPORTED: [(Architecture, &str, &str); 1] =
    [(Architecture::Llama, "LlamaForCausalLM", "llama")];

impl Architecture {
    /// The family of an open checkpoint.
    ///
    /// # Errors
    ///
    /// As [`detect`](Self::detect).
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, ConfigError> {
        Self::detect(checkpoint.config(), checkpoint.config_path())
    }

    /// The family that `config`, the content of the file `path`, names: by the first of its `architectures`, or if it has none by its
    /// `model_type`.
    ///
    /// # Errors
    ///
    /// If the configuration names no family, or one that is not supported.
    pub fn detect(config: &Value, path: &Path) -> Result<Self, ConfigError> {
        let fields = Fields::new(config, path)?;
        let architecture = fields.first_string("architectures")?;
        let (key, name) = match architecture {
            Some(name) => ("architectures", Some(name)),
            None => ("model_type", fields.string("model_type")?),
        };
        let found = SUPPORTED
            .iter()
            .find(|(_, architecture, model_type)| match key {
                "architectures" => name == Some(architecture),
                _ => name == Some(model_type),
            });
        found.map(|(family, ..)| *family).ok_or_else(|| {
            let supported = SUPPORTED.map(|(_, architecture, _)| architecture);
            let found = name.map_or("nothing".into(), |name| format!("{name:?}"));
            fields.error(key, format!("one of {}", supported.join(", ")), found)
        })
    }

    /// The name of the family in `architectures`.
    pub fn name(self) -> &'static str {
        let own = SUPPORTED.iter().find(|(family, ..)| *family == self);
        own.map_or("", |(_, name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn detect(config: Value) -> Result<Architecture, String> {
        Architecture::detect(&config, Path::new("config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_architecture_counts_and_model_type_stands_in_for_it() {
        let llama = Ok(Architecture::Llama);
        assert_eq!(
            detect(json!({"architectures": ["LlamaForCausalLM"], "model_type": "x"})),
            llama
        );
        assert_eq!(
            detect(json!({"architectures": [], "model_type": "llama"})),
            llama
        );
        assert_eq!(
            detect(json!({"architectures": null, "model_type": "llama"})),
            llama
        );
        assert_eq!(Architecture::Llama.name(), "LlamaForCausalLM");
    }

    #[test]
    fn an_unknown_architecture_is_named_beside_the_supported_ones() {
        // A Llama with another head than a language model's has other weights.
        let other =
            json!({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"});
        assert_eq!(
            detect(other).unwrap_err(),
            "config.json: \"architectures\": expected one of LlamaForCausalLM, found \"LlamaForSequenceClassification\""
        );
        assert_eq!(
            detect(json!({"model_type": "mamba"})).unwrap_err(),
            "config.json: \"model_type\": expected one of LlamaForCausalLM, found \"mamba\""
        );
        assert_eq!(
            detect(json!({})).unwrap_err(),
            "config.json: \"model_type\": expected one of LlamaForCausalLM, found nothing"
        );
        for config in [
            json!([]),
            json!({"architectures": "LlamaForCausalLM"}),
            json!({"architectures": [1]}),
            json!({"model_type": 7}),
        ] {
            assert!(detect(config.clone()).is_err(), "{config}");
        }
    }
}
