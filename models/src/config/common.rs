//! The entries that most families share: [`read_common`], and [`check`] for all families.

use burn::tensor::FloatDType;

use super::quantization::refuse_quantized;
use super::rope::{PartialRope, RopeOf, read_rope};
use super::{ConfigError, HiddenAct, activation, fields::Fields};
use crate::decoder::{DecoderConfig, Keys, NormKind, QkNorm, Residual};

/// More layers than any model has. A file that asks for more is damaged.
const MAX_LAYERS: usize = 4096;

/// More components than any head has. The limit bounds the RoPE frequencies, which are computed
/// before a weight is read.
const MAX_HEAD_DIM: usize = 1 << 16;

/// The values of missing entries: the defaults of the family in transformers.
pub(crate) struct Defaults {
    /// `None` means hidden_size / num_attention_heads.
    pub head_dim: Option<usize>,
    /// The KV heads of a file without the entry. `None`, like the entry `null`, means
    /// num_attention_heads.
    pub num_key_value_heads: Option<usize>,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub hidden_act: HiddenAct,
    pub tie_word_embeddings: bool,
    pub rope_theta: f64,
    /// `None` means that RoPE rotates whole heads.
    pub rope: Option<PartialRope>,
    /// Other names of types of RoPE scaling, each with the name that it stands for.
    pub rope_types: &'static [(&'static str, &'static str)],
    /// The context length in training, if it is not [`max_position_embeddings`] in a file without
    /// the entry.
    ///
    /// [`max_position_embeddings`]: Self::max_position_embeddings
    pub original_max_position_embeddings: Option<usize>,
}

impl Defaults {
    pub const LLAMA: Self = Self {
        head_dim: None,
        num_key_value_heads: None,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        hidden_act: HiddenAct::Silu,
        tie_word_embeddings: false,
        rope_theta: 10_000.0,
        rope: None,
        rope_types: &[],
        original_max_position_embeddings: None,
    };
}

/// Reads the entries that most families share.
///
/// The result is a decoder like the first Llama: RMS norms, a gated MLP, no biases and no sliding
/// window. A family overrides the fields in which it differs.
pub(crate) fn read_common(
    fields: Fields<'_>,
    defaults: &Defaults,
) -> Result<DecoderConfig, ConfigError> {
    refuse_quantized(fields)?;
    let hidden_size = fields.required_size("hidden_size")?;
    let num_attention_heads = fields.required_size("num_attention_heads")?;
    let head_dim = head_dim(fields, hidden_size, num_attention_heads, defaults)?;
    let vocab_size = fields.required_size("vocab_size")?;
    let single_token = |key| -> Result<_, ConfigError> {
        let mut first = fields.token_ids(key)?.into_iter().take(1);
        Ok(first.find(|&id| (id as usize) < vocab_size))
    };
    let tied = fields.switch("tie_word_embeddings")?;
    Ok(DecoderConfig {
        hidden_size,
        intermediate_size: fields.required_size("intermediate_size")?,
        num_hidden_layers: layers(fields)?,
        num_attention_heads,
        num_key_value_heads: match fields.contains("num_key_value_heads") {
            true => fields.size("num_key_value_heads")?,
            false => defaults.num_key_value_heads,
        }
        .unwrap_or(num_attention_heads),
        head_dim,
        vocab_size,
        max_position_embeddings: fields
            .size("max_position_embeddings")?
            .unwrap_or(defaults.max_position_embeddings),
        rotary: read_rope(fields, head_dim, &RopeOf::model(fields)?, defaults)?,
        local_rotary: None,
        rope_layers: Vec::new(),
        norm: NormKind::Rms {
            epsilon: fields
                .positive("rms_norm_eps")?
                .unwrap_or(defaults.rms_norm_eps),
        },
        residual: Residual::Serial,
        residual_scale: None,
        qk_norm: QkNorm::Heads,
        query_scale: None,
        attention_softcap: None,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        hidden_act: hidden_act(fields, "hidden_act", defaults.hidden_act)?,
        experts: None,
        embed_scale: None,
        logits_scale: None,
        logits_softcap: None,
        windows: Vec::new(),
        tie_word_embeddings: tied.unwrap_or(defaults.tie_word_embeddings),
        keys: Keys::LLAMA,
        bos_token_id: single_token("bos_token_id")?,
        eos_token_id: fields.token_ids("eos_token_id")?,
        pad_token_id: single_token("pad_token_id")?,
        dtype: dtype(fields)?,
    })
}

/// Reads the activation function named by the entry `key`.
pub(crate) fn hidden_act(
    fields: Fields<'_>,
    key: &str,
    default: HiddenAct,
) -> Result<HiddenAct, ConfigError> {
    match fields.string(key)? {
        None => Ok(default),
        Some(name) => activation::from_name(name)
            .ok_or_else(|| fields.unexpected(key, format!("one of {}", activation::names()))),
    }
}

/// Reads the bound of some logits. A missing entry means `default`, `null` means no bound.
pub(crate) fn bound(
    fields: Fields<'_>,
    key: &str,
    default: Option<f64>,
) -> Result<Option<f64>, ConfigError> {
    match fields.contains(key) {
        true => fields.positive(key),
        false => Ok(default),
    }
}

/// Checks the entries of a file against each other.
pub(crate) fn check(config: &DecoderConfig, fields: Fields<'_>) -> Result<(), ConfigError> {
    let (heads, head_dim) = (config.num_attention_heads, config.head_dim);
    if !heads.is_multiple_of(config.num_key_value_heads) {
        let expected = format!("a divisor of num_attention_heads, {heads}");
        let found = config.num_key_value_heads.to_string();
        return Err(fields.error("num_key_value_heads", expected, found));
    }
    // RoPE pairs the first half of the rotated components with the second.
    let rotated = config.rotary.rotary_dim.unwrap_or(head_dim);
    if rotated == 0 || !rotated.is_multiple_of(2) {
        let (expected, found) = match config.rotary.rotary_dim {
            None => ("an even number".into(), head_dim.to_string()),
            Some(_) => {
                let expected = "an even number of components that RoPE rotates";
                (expected.to_owned(), format!("{rotated} of {head_dim}"))
            }
        };
        return Err(fields.error("head_dim", expected, found));
    }
    for rotary in std::iter::once(&config.rotary).chain(&config.local_rotary) {
        if let Err(error) = rotary.frequencies() {
            let expected = "settings that give a frequency for each pair of components";
            return Err(fields.error("rope_scaling", expected, error.to_string()));
        }
    }
    let (experts, expert) = config
        .experts
        .as_ref()
        .map_or((1, 1), |experts| (experts.count, experts.intermediate_size));
    let products = [
        ("num_attention_heads", [heads, head_dim, config.hidden_size]),
        (
            "intermediate_size",
            [config.intermediate_size, config.hidden_size, 1],
        ),
        ("num_experts", [experts, expert, config.hidden_size]),
        ("vocab_size", [config.vocab_size, config.hidden_size, 1]),
        (
            "max_position_embeddings",
            [config.max_position_embeddings, head_dim, 1],
        ),
    ];
    // The bytes of three projections in the widest type: no later product of sizes overflows.
    let bytes = 3 * size_of::<f64>();
    for (key, factors) in products {
        let product = factors.iter().try_fold(bytes, |a, &b| a.checked_mul(b));
        if product.is_none_or(|product| isize::try_from(product).is_err()) {
            return Err(fields.unexpected(key, "a size that fits into memory"));
        }
    }
    Ok(())
}

fn layers(fields: Fields<'_>) -> Result<usize, ConfigError> {
    match fields.required_size("num_hidden_layers")? {
        layers if layers <= MAX_LAYERS => Ok(layers),
        _ => Err(fields.unexpected("num_hidden_layers", format!("at most {MAX_LAYERS}"))),
    }
}

fn head_dim(
    fields: Fields<'_>,
    hidden_size: usize,
    heads: usize,
    defaults: &Defaults,
) -> Result<usize, ConfigError> {
    let head_dim = match fields.size("head_dim")?.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let expected = format!("a divisor of hidden_size, {hidden_size}, or a head_dim");
            return Err(fields.unexpected("num_attention_heads", expected));
        }
    };
    match head_dim <= MAX_HEAD_DIM {
        true => Ok(head_dim),
        false => {
            let expected = format!("at most {MAX_HEAD_DIM}");
            Err(fields.error("head_dim", expected, head_dim.to_string()))
        }
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
