//! Writes GGUF files as llama.cpp does: [`GgufFile`].

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;

/// A value of the metadata.
#[derive(Clone)]
pub enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
}

/// A tensor: its row-major shape, ggml's number of its type, and its bytes.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
}

/// A GGUF file under construction.
#[derive(Clone, Default)]
pub struct GgufFile {
    pub metadata: Vec<(String, Meta)>,
    pub tensors: Vec<Tensor>,
}

impl Meta {
    pub fn text(text: &str) -> Self {
        Self::Text(text.into())
    }

    pub fn texts(texts: &[&str]) -> Self {
        Self::Texts(texts.iter().map(|&text| text.into()).collect())
    }

    fn write(&self, out: &mut Vec<u8>) {
        let list = |out: &mut Vec<u8>, kind: u32, count: usize| {
            out.extend(9_u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((count as u64).to_le_bytes());
        };
        let scalar = |out: &mut Vec<u8>, kind: u32, bytes: &[u8]| {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Self::U32(value) => scalar(out, 4, &value.to_le_bytes()),
            Self::F32(value) => scalar(out, 6, &value.to_le_bytes()),
            Self::Bool(value) => scalar(out, 7, &[u8::from(*value)]),
            Self::Text(text) => {
                out.extend(8_u32.to_le_bytes());
                write_text(text, out);
            }
            Self::Texts(texts) => {
                list(out, 8, texts.len());
                texts.iter().for_each(|text| write_text(text, out));
            }
            Self::Ints(values) => {
                list(out, 5, values.len());
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Self::Floats(values) => {
                list(out, 6, values.len());
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl GgufFile {
    /// Returns the smallest valid file: the required metadata of a Llama with one layer.
    pub fn llama() -> Self {
        let mut file = Self::default();
        file.set("general.architecture", Meta::text("llama"));
        let sizes = [
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("block_count", 1),
            ("attention.head_count", 2),
            ("context_length", 64),
        ];
        for (key, size) in sizes {
            file.set(&format!("llama.{key}"), Meta::U32(size));
        }
        file.set("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5));
        file.floats("token_embd.weight", &[4, 32], &[0.5; 128]);
        file
    }

    /// Sets an entry of the metadata.
    pub fn set(&mut self, key: &str, value: Meta) {
        self.metadata.retain(|(own, _)| own != key);
        self.metadata.push((key.into(), value));
    }

    /// Adds a tensor.
    pub fn push(&mut self, name: &str, shape: &[u64], kind: u32, bytes: Vec<u8>) {
        self.tensors.push(Tensor {
            name: name.into(),
            shape: shape.into(),
            kind,
            bytes,
        });
    }

    /// Adds a tensor in F32.
    pub fn floats(&mut self, name: &str, shape: &[u64], values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        self.push(name, shape, 0, bytes.collect());
    }

    /// Returns the bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            write_text(key, &mut out);
            value.write(&mut out);
        }
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            write_text(&tensor.name, &mut out);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for size in tensor.shape.iter().rev() {
                out.extend(size.to_le_bytes());
            }
            out.extend(tensor.kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + tensor.bytes.len() as u64).next_multiple_of(32);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.bytes);
        }
        out
    }

    /// Converts a Hugging Face checkpoint, as `convert_hf_to_gguf.py` does.
    pub fn from_folder(folder: &Path) -> Self {
        let config: Value =
            serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let files = std::fs::read_dir(folder).unwrap();
        let weights = files.map(|entry| entry.unwrap().path()).filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("model") && name.ends_with(".safetensors")
        });
        let weights: Vec<Vec<u8>> = weights.map(|path| std::fs::read(path).unwrap()).collect();
        Self::from_checkpoint(&config, &weights)
    }

    /// Converts the content of `config.json` and of safetensors files.
    pub fn from_checkpoint(config: &Value, weights: &[Vec<u8>]) -> Self {
        let number = |key: &str| config[key].as_u64().unwrap() as u32;
        let family = config["model_type"].as_str().unwrap();
        let arch = match family {
            "gemma3_text" => "gemma3",
            "qwen3_moe" => "qwen3moe",
            "mixtral" => "llama",
            other => other,
        };
        let mut file = Self::default();
        file.set("general.architecture", Meta::text(arch));
        let keys = [
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("block_count", "num_hidden_layers"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
            ("context_length", "max_position_embeddings"),
        ];
        for (key, name) in keys {
            file.set(&format!("{arch}.{key}"), Meta::U32(number(name)));
        }
        let head_dim = match config["head_dim"].is_null() {
            false => number("head_dim"),
            true => number("hidden_size") / number("num_attention_heads"),
        };
        file.set(&format!("{arch}.attention.key_length"), Meta::U32(head_dim));
        let epsilon = config["rms_norm_eps"].as_f64().unwrap();
        let key = format!("{arch}.attention.layer_norm_rms_epsilon");
        file.set(&key, Meta::F32(epsilon as f32));
        file.set("tokenizer.ggml.bos_token_id", Meta::U32(1));
        file.set("tokenizer.ggml.eos_token_id", Meta::U32(2));
        file.set_optional(config, arch);
        file.set_rope(config, arch, head_dim as usize);
        let pairs = matches!(arch, "llama" | "granite" | "smollm3").then_some(head_dim as usize);
        for weights in weights {
            file.add_weights(weights, family, pairs);
        }
        file.stack_experts();
        file
    }

    /// Sets the entries that only some families have.
    fn set_optional(&mut self, config: &Value, arch: &str) {
        let keys = [
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
            ("embedding_scale", "embedding_multiplier"),
            ("residual_scale", "residual_multiplier"),
            ("logit_scale", "logits_scaling"),
            ("attention.scale", "attention_multiplier"),
            ("attention.sliding_window", "sliding_window"),
            ("expert_count", "num_local_experts"),
            ("expert_used_count", "num_experts_per_tok"),
            ("expert_feed_forward_length", "moe_intermediate_size"),
        ];
        for (key, name) in keys {
            let value = match &config[name] {
                Value::Number(number) if number.is_u64() => {
                    Meta::U32(number.as_u64().unwrap() as u32)
                }
                Value::Number(number) => Meta::F32(number.as_f64().unwrap() as f32),
                _ => continue,
            };
            self.set(&format!("{arch}.{key}"), value);
        }
    }

    fn set_rope(&mut self, config: &Value, arch: &str, head_dim: usize) {
        let rope = &config["rope_parameters"];
        let rope = rope.get("full_attention").unwrap_or(rope);
        let theta = rope["rope_theta"].as_f64().unwrap();
        let part = rope["partial_rotary_factor"].as_f64().unwrap_or(1.0);
        let rotated = (head_dim as f64 * part) as u32;
        self.set(&format!("{arch}.rope.dimension_count"), Meta::U32(rotated));
        self.set(&format!("{arch}.rope.freq_base"), Meta::F32(theta as f32));
        let context = &rope["original_max_position_embeddings"];
        match rope["rope_type"].as_str().unwrap() {
            "llama3" => {
                let divisors = llama3_divisors(rope, theta, head_dim);
                self.floats("rope_freqs.weight", &[divisors.len() as u64], &divisors);
            }
            "longrope" => {
                let context = context.as_f64().unwrap();
                let factor = config["max_position_embeddings"].as_f64().unwrap() / context;
                let scale = (1.0 + factor.ln() / context.ln()).sqrt();
                let key = |name: &str| format!("{arch}.rope.scaling.{name}");
                self.set(&key("attn_factor"), Meta::F32(scale as f32));
                self.set(&key("original_context_length"), Meta::U32(context as u32));
                for kind in ["short", "long"] {
                    let factors = rope[format!("{kind}_factor")].as_array().unwrap();
                    let factors: Vec<f32> = factors
                        .iter()
                        .map(|factor| factor.as_f64().unwrap() as f32)
                        .collect();
                    let name = format!("rope_factors_{kind}.weight");
                    self.floats(&name, &[factors.len() as u64], &factors);
                }
            }
            "linear" => {
                let factor = rope["factor"].as_f64().unwrap() as f32;
                self.set(&format!("{arch}.rope.scaling.type"), Meta::text("linear"));
                self.set(&format!("{arch}.rope.scaling.factor"), Meta::F32(factor));
            }
            _ => {}
        }
    }

    fn add_weights(&mut self, safetensors: &[u8], family: &str, pairs: Option<usize>) {
        for (name, view) in SafeTensors::deserialize(safetensors).unwrap().tensors() {
            let data = view.data();
            let mut values: Vec<f32> = match view.dtype() {
                safetensors::Dtype::F32 => {
                    let bytes = data.as_chunks().0.iter();
                    bytes.map(|&bytes| f32::from_le_bytes(bytes)).collect()
                }
                safetensors::Dtype::F16 => {
                    let bytes = data.as_chunks().0.iter();
                    bytes
                        .map(|&bytes| half::f16::from_le_bytes(bytes).to_f32())
                        .collect()
                }
                other => panic!("{name}: {other:?}"),
            };
            if family.starts_with("gemma") && name.ends_with("norm.weight") {
                values.iter_mut().for_each(|weight| *weight += 1.0);
            }
            let is_rotated = name.contains("q_proj") || name.contains("k_proj");
            if let Some(head_dim) = pairs.filter(|_| is_rotated) {
                let columns = view.shape().iter().skip(1).product();
                values = pair_rows(&values, columns, head_dim);
            }
            let shape: Vec<u64> = view.shape().iter().map(|&size| size as u64).collect();
            self.floats(&llama_cpp_name(&name, family), &shape, &values);
        }
    }

    /// Puts the matrices of a layer's experts, `ffn_up_exps.0` and so on, into one tensor.
    fn stack_experts(&mut self) {
        let is_expert = |tensor: &Tensor| tensor.name.contains("_exps.");
        let (mut experts, others) = std::mem::take(&mut self.tensors)
            .into_iter()
            .partition::<Vec<_>, _>(is_expert);
        self.tensors = others;
        let parts = |name: &str| {
            let (module, rest) = name.split_once("_exps.").unwrap();
            let expert = rest.split('.').next().unwrap();
            (module.to_owned(), expert.parse::<usize>().unwrap())
        };
        experts.sort_by_key(|tensor| parts(&tensor.name));
        for same in experts.chunk_by(|a, b| parts(&a.name).0 == parts(&b.name).0) {
            let name = format!("{}_exps.weight", parts(&same[0].name).0);
            let shape = [&[same.len() as u64], &*same[0].shape].concat();
            let bytes = same
                .iter()
                .flat_map(|tensor| tensor.bytes.clone())
                .collect();
            self.push(&name, &shape, 0, bytes);
        }
    }
}

/// Interleaves the halves of each head like `LlamaModel.permute`:
/// reshape(heads, 2, head_dim / 2, columns).swapaxes(1, 2).
fn pair_rows(values: &[f32], columns: usize, head_dim: usize) -> Vec<f32> {
    let mut paired = Vec::new();
    for head in values.chunks_exact(head_dim * columns) {
        for pair in 0..head_dim / 2 {
            for half in 0..2 {
                let row = half * head_dim / 2 + pair;
                paired.extend(&head[row * columns..(row + 1) * columns]);
            }
        }
    }
    paired
}

fn llama_cpp_name(name: &str, family: &str) -> String {
    // Four norms, or those of outputs alone.
    let sandwich = matches!(family, "gemma2" | "gemma3_text" | "olmo2");
    let post_attention = match sandwich {
        true => "post_attention_norm",
        false => "ffn_norm",
    };
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", post_attention),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("mlp.gate.", "ffn_gate_inp."),
        ("block_sparse_moe.gate", "ffn_gate_inp"),
    ];
    let name = names
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
    let lists = [".mlp.experts.", ".block_sparse_moe.experts."];
    let modules = [
        ("gate_proj", "gate"),
        ("up_proj", "up"),
        ("down_proj", "down"),
        ("w1", "gate"),
        ("w3", "up"),
        ("w2", "down"),
    ];
    for list in lists {
        if let Some((layer, rest)) = name.split_once(list) {
            let (expert, module) = rest.split_once('.').unwrap();
            let module = module.trim_end_matches(".weight");
            let (_, own) = modules.iter().find(|(name, _)| *name == module).unwrap();
            return format!("{layer}.ffn_{own}_exps.{expert}.weight");
        }
    }
    name
}

/// Returns the divisors of the RoPE frequencies, as `LlamaModel.generate_extra_tensors` writes
/// them.
fn llama3_divisors(rope: &Value, theta: f64, head_dim: usize) -> Vec<f32> {
    let number = |key: &str| rope[key].as_f64().unwrap();
    let (factor, low, high) = (
        number("factor"),
        number("low_freq_factor"),
        number("high_freq_factor"),
    );
    let context = number("original_max_position_embeddings");
    let divisor = |pair: usize| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * pair as f64 / head_dim as f64);
        if wavelength < context / high {
            1.0
        } else if wavelength > context / low {
            factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..head_dim / 2).map(|pair| divisor(pair) as f32).collect()
}
