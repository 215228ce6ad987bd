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
    /// The norm before attention, if the family has one.
    pub input_norm: Option<&'static str>,
    /// The norm of attention's output, before it is added to the residual stream.
    pub attention_output_norm: Option<&'static str>,
    /// The norm before the MLP, if the family has one.
    pub mlp_input_norm: Option<&'static str>,
    /// The norm of the MLP's output, before it is added to the residual stream.
    pub mlp_output_norm: Option<&'static str>,
    /// The query, key and value projections.
    pub qkv: QkvKeys,
    /// The output projection of attention.
    pub o: &'static str,
    /// The norms of queries and keys, if the family has them.
    pub qk_norm: Option<[&'static str; 2]>,
    /// The MLP.
    pub mlp: MlpKeys,
    /// The experts of the layers that have them in place of one MLP.
    pub experts: Option<ExpertKeys>,
    /// A matrix in which a checkpoint may store those of queries, keys and values, one below the
    /// other.
    pub fused_qkv: Option<&'static str>,
    /// A matrix in which a checkpoint may store those of the MLP's gate and up layer.
    pub fused_gate_up: Option<&'static str>,
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

/// The names of a mixture of experts. Names of an expert's weights follow `list` and the expert's
/// index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertKeys {
    /// The layer that scores the experts.
    pub router: &'static str,
    /// The list of experts.
    pub list: &'static str,
    /// The linear layers of an expert.
    pub mlp: MlpKeys,
}

impl Keys {
    /// The names of Llama, which most later families use too.
    pub const LLAMA: Keys = Keys {
        embed: "model.embed_tokens",
        layers: "model.layers",
        norm: "model.norm",
        head: "lm_head",
        input_norm: Some("input_layernorm"),
        attention_output_norm: None,
        mlp_input_norm: Some("post_attention_layernorm"),
        mlp_output_norm: None,
        qkv: QkvKeys::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        o: "self_attn.o_proj",
        qk_norm: None,
        mlp: MlpKeys::Gated {
            gate: "mlp.gate_proj",
            up: "mlp.up_proj",
            down: "mlp.down_proj",
        },
        experts: None,
        fused_qkv: None,
        fused_gate_up: None,
        constants: &[],
    };
}
