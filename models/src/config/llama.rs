//! The configuration of the Llama family: [`LlamaConfig`].

use std::path::Path;

use burn::tensor::FloatDType;
use serde_json::Value;
use sparq::RotaryScaling;

use super::{ConfigError, HiddenAct, fields::Fields, generation, rope::read_rope};
use crate::checkpoint::Checkpoint;

/// More than any model has; a file that asks for more is damaged.
const MAX_LAYERS: usize = 4096;

/// The `config.json` of a `LlamaForCausalLM`, with its defaults filled in.
///
/// Sizes are positive, `num_attention_heads` is a multiple of `num_key_value_heads`, `head_dim` is even, and no product of sizes that a
/// model allocates overflows.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads of each layer.
    pub num_attention_heads: usize,
    /// Key-value heads of each layer.
    pub num_key_value_heads: usize,
    /// Components of each head.
    pub head_dim: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f64,
    /// Positions the model was trained for.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are scaled to reach beyond the context of the first training.
    pub rope_scaling: RotaryScaling,
    /// Whether the output projection is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether the projections of attention have a bias.
    pub attention_bias: bool,
    /// Whether the projections of the MLP have a bias.
    pub mlp_bias: bool,
    /// Activation function of the MLP.
    pub hidden_act: HiddenAct,
    /// The token in front of a text; none if it is beyond the vocabulary.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_id: Vec<u32>,
    /// The token that fills up a batch; none if it is beyond the vocabulary.
    pub pad_token_id: Option<u32>,
    /// The type the weights were published in (`dtype`, formerly `torch_dtype`).
    pub dtype: Option<FloatDType>,
}

impl LlamaConfig {
    /// The configuration of an open checkpoint; `generation_config.json` adds to `eos_token_id`.
    ///
    /// # Errors
    ///
    /// As [`from_json`](Self::from_json), and if `generation_config.json` is there but cannot be read.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, ConfigError> {
        let mut config = Self::from_json(checkpoint.config(), checkpoint.config_path())?;
        for id in generation::eos_token_ids(checkpoint)? {
            if !config.eos_token_id.contains(&id) {
                config.eos_token_id.push(id);
            }
        }
        Ok(config)
    }

    /// The configuration in `config`, the content of the file `path`.
    ///
    /// # Errors
    ///
    /// If an entry is missing or not of its kind, if entries contradict each other, or if the model needs something that is not supported.
    pub fn from_json(config: &Value, path: &Path) -> Result<Self, ConfigError> {
        let fields = Fields::new(config, path)?;
        if fields.get("quantization_config").is_some() {
            return Err(fields.unexpected(
                "quantization_config",
                "nothing (quantized checkpoints are not read)",
            ));
        }
        let hidden_size = fields.required_size("hidden_size")?;
        let num_attention_heads = fields.required_size("num_attention_heads")?;
        let (rope_theta, rope_scaling) = read_rope(fields)?;
        let vocab_size = fields.required_size("vocab_size")?;
        let single_token = |key| -> Result<_, ConfigError> {
            let mut first = fields.token_ids(key)?.into_iter().take(1);
            Ok(first.find(|&id| (id as usize) < vocab_size))
        };
        let config = Self {
            hidden_size,
            intermediate_size: fields.required_size("intermediate_size")?,
            num_hidden_layers: fields.required_size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: fields
                .size("num_key_value_heads")?
                .unwrap_or(num_attention_heads),
            head_dim: head_dim(fields, hidden_size, num_attention_heads)?,
            vocab_size,
            // Where a file leaves something out, it means the default of transformers.
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
            max_position_embeddings: fields.size("max_position_embeddings")?.unwrap_or(2048),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: fields.switch("tie_word_embeddings")?,
            attention_bias: fields.switch("attention_bias")?,
            mlp_bias: fields.switch("mlp_bias")?,
            hidden_act: hidden_act(fields)?,
            bos_token_id: single_token("bos_token_id")?,
            eos_token_id: fields.token_ids("eos_token_id")?,
            pad_token_id: single_token("pad_token_id")?,
            dtype: dtype(fields)?,
        };
        config.check(fields)?;
        Ok(config)
    }

    fn check(&self, fields: Fields<'_>) -> Result<(), ConfigError> {
        if self.num_hidden_layers > MAX_LAYERS {
            return Err(fields.unexpected("num_hidden_layers", format!("at most {MAX_LAYERS}")));
        }
        if !self
            .num_attention_heads
            .is_multiple_of(self.num_key_value_heads)
        {
            let (heads, found) = (self.num_attention_heads, self.num_key_value_heads);
            let expected = format!("a divisor of num_attention_heads, {heads}");
            return Err(fields.error("num_key_value_heads", expected, found.to_string()));
        }
        // The rotation pairs the first half of a head with the second.
        if !self.head_dim.is_multiple_of(2) {
            return Err(fields.error("head_dim", "an even number", self.head_dim.to_string()));
        }
        let products = [
            (
                "num_attention_heads",
                [self.num_attention_heads, self.head_dim, self.hidden_size],
            ),
            (
                "intermediate_size",
                [self.intermediate_size, self.hidden_size, 1],
            ),
            ("vocab_size", [self.vocab_size, self.hidden_size, 1]),
            (
                "max_position_embeddings",
                [self.max_position_embeddings, self.head_dim, 1],
            ),
        ];
        // In bytes of the widest type, so that no multiplication behind this can overflow.
        let bytes = size_of::<f64>();
        for (key, factors) in products {
            let product = factors.iter().try_fold(bytes, |a, &b| a.checked_mul(b));
            if product.is_none_or(|product| isize::try_from(product).is_err()) {
                return Err(fields.unexpected(key, "a size that fits into memory"));
            }
        }
        Ok(())
    }
}

fn head_dim(fields: Fields<'_>, hidden_size: usize, heads: usize) -> Result<usize, ConfigError> {
    match fields.size("head_dim")? {
        Some(head_dim) => Ok(head_dim),
        None if hidden_size.is_multiple_of(heads) => Ok(hidden_size / heads),
        None => {
            let expected = format!("a divisor of hidden_size, {hidden_size}, or a head_dim");
            Err(fields.unexpected("num_attention_heads", expected))
        }
    }
}

fn hidden_act(fields: Fields<'_>) -> Result<HiddenAct, ConfigError> {
    match fields.string("hidden_act")? {
        None => Ok(HiddenAct::Silu),
        Some(name) => HiddenAct::from_name(name).ok_or_else(|| {
            fields.unexpected("hidden_act", format!("one of {}", HiddenAct::names()))
        }),
    }
}

fn dtype(fields: Fields<'_>) -> Result<Option<FloatDType>, ConfigError> {
    let key = match fields.get("dtype") {
        Some(_) => "dtype",
        None => "torch_dtype",
    };
    let Some(name) = fields.string(key)? else {
        return Ok(None);
    };
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" => Ok(Some(FloatDType::F32)),
        "float16" => Ok(Some(FloatDType::F16)),
        "bfloat16" => Ok(Some(FloatDType::BF16)),
        _ => Err(fields.unexpected(key, "float32, float16 or bfloat16")),
    }
}
