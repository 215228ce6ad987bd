//! The names that checkpoints give to weights: [`Keys`].

/// The names of a family's weights. Those below `layers` follow the number of the layer: `{layers}.0.{input_norm}.weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The embedding table.
    pub embed: &'static str,
    /// What the layers are numbered under.
    pub layers: &'static str,
    /// The norm behind the last layer.
    pub norm: &'static str,
    /// The language model head.
    pub head: &'static str,
    /// The norm before attention.
    pub input_norm: &'static str,
    /// The norm before the MLP.
    pub post_attention_norm: &'static str,
    /// The projections of queries, keys and values.
    pub qkv: QkvKeys,
    /// The output projection of attention.
    pub o: &'static str,
    /// The norms of each head of queries and of keys, where there are any.
    pub qk_norm: Option<[&'static str; 2]>,
    /// The MLP.
    pub mlp: MlpKeys,
    /// Tensors of a layer that old files store and that are no weights.
    pub constants: &'static [&'static str],
}

/// How the projections of queries, keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvKeys {
    /// Each as a linear layer.
    Separate([&'static str; 3]),
    /// As one linear layer, whose outputs are the query, key and value of the first head, then of the second, and so on: `[H, 3, d]`.
    Interleaved(&'static str),
}

/// The linear layers of an MLP, from which its form follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKeys {
    /// `down(act(gate(x)) * up(x))`: GLU variants (Shazeer, arXiv 2002.05202).
    Gated {
        /// The layer whose outputs pass through the activation function.
        gate: &'static str,
        /// The layer whose outputs are multiplied with these.
        up: &'static str,
        /// The layer back to the residual stream.
        down: &'static str,
    },
    /// `down(act(up(x)))`.
    Plain {
        /// The layer up.
        up: &'static str,
        /// The layer back to the residual stream.
        down: &'static str,
    },
}

impl Keys {
    /// The names of Llama, which most later families took over.
    pub const LLAMA: Keys = Keys {
        embed: "model.embed_tokens",
        layers: "model.layers",
        norm: "model.norm",
        head: "lm_head",
        input_norm: "input_layernorm",
        post_attention_norm: "post_attention_layernorm",
        qkv: QkvKeys::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        o: "self_attn.o_proj",
        qk_norm: None,
        mlp: MlpKeys::Gated {
            gate: "mlp.gate_proj",
            up: "mlp.up_proj",
            down: "mlp.down_proj",
        },
        constants: &[],
    };
}
