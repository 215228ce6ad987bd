//! The names of weights in checkpoints: [`Keys`].

/// The weight names of a family. Names of a layer's weights follow `layers` and the layer's index,
/// for example `{layers}.0.{input_norm}.weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The embedding table.
    pub embed: &'static str,
    /// The list of layers.
    pub layers: &'static str,
    /// The norm after the last layer.
    pub norm: &'static str,
    /// The language model head.
    pub head: &'static str,
    /// The norm before attention.
    pub input_norm: &'static str,
    /// The norm before the MLP.
    pub post_attention_norm: &'static str,
    /// The query, key and value projections.
    pub qkv: QkvKeys,
    /// The output projection of attention.
    pub o: &'static str,
    /// The norms of each query head and each key head, if the family has them.
    pub qk_norm: Option<[&'static str; 2]>,
    /// The MLP.
    pub mlp: MlpKeys,
    /// Constants that old checkpoints store beside a layer's weights.
    pub constants: &'static [&'static str],
}

/// The storage of the query, key and value projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvKeys {
    /// Three linear layers.
    Separate([&'static str; 3]),
    /// One linear layer with outputs `[H, 3, d]`: query, key and value of the first head, then of
    /// the second, and so on.
    Interleaved(&'static str),
}

/// The linear layers of an MLP, which also determine its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKeys {
    /// `down(act(gate(x)) * up(x))`, a GLU variant (Shazeer, arXiv 2002.05202).
    Gated {
        /// The input layer with the activation function.
        gate: &'static str,
        /// The input layer without it.
        up: &'static str,
        /// The output layer.
        down: &'static str,
    },
    /// `down(act(up(x)))`.
    Plain {
        /// The input layer.
        up: &'static str,
        /// The output layer.
        down: &'static str,
    },
}

impl Keys {
    /// The names of Llama, which most later families use too.
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
