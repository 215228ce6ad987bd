//! Detects the family of a checkpoint: [`Architecture`].

use std::path::Path;

use serde_json::Value;

use super::Architecture;
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, Fields, check};
use crate::decoder::DecoderConfig;

impl Architecture {
    /// Returns the family of an open checkpoint.
    ///
    /// # Errors
    /// As [`detect`](Self::detect).
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, ConfigError> {
        Self::detect(checkpoint.config(), checkpoint.config_path())
    }

    /// Returns the family that `config`, the content of the file `path`, names.
    ///
    /// The first entry of `architectures` decides; without one, `model_type` does.
    ///
    /// # Errors
    /// If the configuration names no family or an unsupported one.
    pub fn detect(config: &Value, path: &Path) -> Result<Self, ConfigError> {
        let fields = Fields::new(config, path)?;
        let architecture = fields.first_string("architectures")?;
        let (key, name) = match architecture {
            Some(name) => ("architectures", Some(name)),
            None => ("model_type", fields.string("model_type")?),
        };
        let name_of = |architecture: Self| match key {
            "architectures" => architecture.name(),
            _ => architecture.family().model_type,
        };
        let mut all = Self::ALL.iter().copied();
        all.find(|&architecture| name == Some(name_of(architecture)))
            .ok_or_else(|| {
                let supported: Vec<_> = Self::ALL.iter().map(|&each| name_of(each)).collect();
                let found = name.map_or("nothing".into(), |name| format!("{name:?}"));
                fields.error(key, format!("one of {}", supported.join(", ")), found)
            })
    }

    /// Returns the family's name in `architectures`.
    pub fn name(self) -> &'static str {
        self.family().architecture
    }

    /// Reads `config`, the content of the file `path`, as a configuration of this family.
    ///
    /// The family that the file names is not checked.
    ///
    /// # Errors
    /// If an entry is missing, malformed or unsupported, or if entries contradict each other.
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
    fn detection_falls_back_to_model_type() {
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
    fn unknown_architecture_lists_the_supported_ones() {
        // The head for classification has other weights than a language model head.
        let other =
            json!({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"});
        assert_eq!(
            detect(other).unwrap_err(),
            "config.json: \"architectures\": expected one of LlamaForCausalLM, MistralForCausalLM, \
             GemmaForCausalLM, GPTNeoXForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, \
             Qwen3MoeForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, Phi3ForCausalLM, \
             SmolLM3ForCausalLM, Olmo2ForCausalLM, GraniteForCausalLM, MixtralForCausalLM, \
             found \"LlamaForSequenceClassification\""
        );
        assert_eq!(
            detect(json!({"model_type": "mamba"})).unwrap_err(),
            "config.json: \"model_type\": expected one of llama, mistral, gemma, gpt_neox, \
             qwen2, qwen3, qwen3_moe, gemma2, gemma3_text, phi3, smollm3, olmo2, granite, mixtral, \
             found \"mamba\""
        );
        assert_eq!(
            detect(json!({})).unwrap_err(),
            "config.json: \"model_type\": expected one of llama, mistral, gemma, gpt_neox, \
             qwen2, qwen3, qwen3_moe, gemma2, gemma3_text, phi3, smollm3, olmo2, granite, mixtral, \
             found nothing"
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
