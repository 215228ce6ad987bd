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

    /// Converts a Hugging Face checkpoint of a Llama or Qwen 2, as `convert_hf_to_gguf.py` does.
    pub fn from_folder(folder: &Path) -> Self {
        let config: Value =
            serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let number = |key: &str| config[key].as_u64().unwrap() as u32;
        let arch = config["model_type"].as_str().unwrap();
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
        let head_dim = match config.get("head_dim") {
            Some(_) => number("head_dim"),
            None => number("hidden_size") / number("num_attention_heads"),
        };
        for key in ["attention.key_length", "rope.dimension_count"] {
            file.set(&format!("{arch}.{key}"), Meta::U32(head_dim));
        }
        let head_dim = head_dim as usize;
        let epsilon = config["rms_norm_eps"].as_f64().unwrap();
        let key = format!("{arch}.attention.layer_norm_rms_epsilon");
        file.set(&key, Meta::F32(epsilon as f32));
        let rope = &config["rope_parameters"];
        let theta = rope["rope_theta"].as_f64().unwrap();
        file.set(&format!("{arch}.rope.freq_base"), Meta::F32(theta as f32));
        file.set("tokenizer.ggml.bos_token_id", Meta::U32(1));
        file.set("tokenizer.ggml.eos_token_id", Meta::U32(2));

        if rope["rope_type"] == "llama3" {
            let divisors = llama3_divisors(rope, theta, head_dim);
            file.floats("rope_freqs.weight", &[divisors.len() as u64], &divisors);
        }
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with("model") && name.ends_with(".safetensors") {
                let pairs = (arch == "llama").then_some(head_dim);
                file.add_weights(&std::fs::read(&path).unwrap(), pairs);
            }
        }
        file
    }

    fn add_weights(&mut self, safetensors: &[u8], pairs: Option<usize>) {
        for (name, view) in SafeTensors::deserialize(safetensors).unwrap().tensors() {
            let bytes = view.data().as_chunks().0.iter();
            let mut values: Vec<f32> = match view.dtype() {
                safetensors::Dtype::F32 => bytes.map(|&bytes| f32::from_le_bytes(bytes)).collect(),
                other => panic!("{name}: {other:?}"),
            };
            let is_rotated = name.contains("q_proj") || name.contains("k_proj");
            if let Some(head_dim) = pairs.filter(|_| is_rotated) {
                let columns = view.shape().iter().skip(1).product();
                values = pair_rows(&values, columns, head_dim);
            }
            let shape: Vec<u64> = view.shape().iter().map(|&size| size as u64).collect();
            self.floats(&llama_cpp_name(&name), &shape, &values);
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

fn llama_cpp_name(name: &str) -> String {
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    names
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
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
