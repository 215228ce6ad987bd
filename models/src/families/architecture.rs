//! Which family a checkpoint belongs to: [`Architecture`].

use std::path::Path;

use serde_json::Value;

use super::Architecture;
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, Fields, check};
use crate::decoder::DecoderConfig;

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
        let own = |architecture: Self| match key {
            "architectures" => architecture.name(),
            _ => architecture.family().model_type,
        };
        let mut all = Self::ALL.iter().copied();
        all.find(|&architecture| name == Some(own(architecture)))
            .ok_or_else(|| {
                let supported: Vec<_> = Self::ALL.iter().map(|&each| own(each)).collect();
                let found = name.map_or("nothing".into(), |name| format!("{name:?}"));
                fields.error(key, format!("one of {}", supported.join(", ")), found)
            })
    }

    /// The name of the family in `architectures`.
    pub fn name(self) -> &'static str {
        self.family().architecture
    }

    /// Reads `config`, the content of the file `path`, as this family does, whatever family the file names.
    ///
    /// # Errors
    ///
    /// If an entry is missing or not of its kind, if entries contradict each other, or if the model needs something that is not supported.
    pub fn read(self, config: &Value, path: &Path) -> Result<DecoderConfig, ConfigError> {
        let fields = Fields::new(config, path)?;
        let config = (self.family().read)(fields)?;
        check(&config, fields)?;
        Ok(config)
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
        for &architecture in Architecture::ALL {
            let name = json!({"architectures": [architecture.name()]});
            assert_eq!(detect(name), Ok(architecture));
            let model_type = json!({"model_type": architecture.family().model_type});
            assert_eq!(detect(model_type), Ok(architecture));
        }
    }

    #[test]
    fn an_unknown_architecture_is_named_beside_the_supported_ones() {
        // A Llama with another head than a language model's has other weights.
        let other =
            json!({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"});
        assert_eq!(
            detect(other).unwrap_err(),
            "config.json: \"architectures\": expected one of LlamaForCausalLM, MistralForCausalLM, GemmaForCausalLM, GPTNeoXForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, found \"LlamaForSequenceClassification\""
        );
        assert_eq!(
            detect(json!({"model_type": "mamba"})).unwrap_err(),
            "config.json: \"model_type\": expected one of llama, mistral, gemma, gpt_neox, qwen2, qwen3, found \"mamba\""
        );
        assert_eq!(
            detect(json!({})).unwrap_err(),
            "config.json: \"model_type\": expected one of llama, mistral, gemma, gpt_neox, qwen2, qwen3, found nothing"
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
