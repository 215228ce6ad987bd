//! GGUF files with random weights, in a type of llama.cpp.
//!
//! Blocks hold random codes with constant scales: a program does the same work on them as on
//! quantised weights, and a file is written at the speed of the disk.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use half::f16;
use sparq_measure::shape::CacheType;
use sparq_models::DecoderConfig;

use super::Recipe;
use super::random::{Normal, STANDARD_DEVIATION, mix};
use super::tensors::{self, Tensor, Values};
use super::tokenizer;

/// Offsets of tensors are multiples of it.
const ALIGNMENT: u64 = 32;

/// Elements that are made and written at a time, a multiple of every block.
const PART: usize = 1 << 20;

/// The type of the matrices. Vectors are in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum GgufType {
    /// 16-bit floats
    #[value(name = "f16")]
    F16,
    /// 8 bits, blocks of 32 with a scale
    Q8_0,
    /// 4 bits, blocks of 32 with a scale
    Q4_0,
    /// 4 bits, blocks of 256 with eight scales and minima; Q8_0 where a row is no multiple of 256
    #[value(name = "q4_k")]
    Q4K,
}

/// A type as it is stored.
#[derive(Clone, Copy)]
struct Stored {
    /// Its number in the format.
    number: u32,
    /// Elements of a block.
    elements: usize,
    /// Bytes of a block.
    bytes: usize,
}

const F32: Stored = stored(0, 1, 4);

const fn stored(number: u32, elements: usize, bytes: usize) -> Stored {
    Stored {
        number,
        elements,
        bytes,
    }
}

impl GgufType {
    /// The number in `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            GgufType::F16 => 1,
            GgufType::Q8_0 => 7,
            GgufType::Q4_0 => 2,
            GgufType::Q4K => 14,
        }
    }

    fn stored(self) -> Stored {
        match self {
            GgufType::F16 => stored(1, 1, 2),
            GgufType::Q8_0 => stored(8, 32, 34),
            GgufType::Q4_0 => stored(2, 32, 18),
            GgufType::Q4K => stored(12, 256, 144),
        }
    }

    /// The type in which a tensor is stored, a matrix in this type if its rows are whole blocks.
    fn of(self, tensor: &Tensor) -> Option<Self> {
        let row = match tensor.shape[..] {
            [_, row] => row,
            _ => return None,
        };
        let fits = |kind: &Self| row.is_multiple_of(kind.stored().elements);
        [self, GgufType::Q8_0, GgufType::F16].into_iter().find(fits)
    }

    /// Sets the scales of blocks of random bytes, for a standard deviation of
    /// [`STANDARD_DEVIATION`].
    fn set_scales(self, blocks: &mut [u8]) {
        // Uniform codes have a deviation of sqrt((n^2 - 1) / 12).
        let deviation = |codes: f64| ((codes * codes - 1.0) / 12.0).sqrt();
        let half = |value: f64| f16::from_f64(value).to_le_bytes();
        let eight = half(STANDARD_DEVIATION / deviation(256.0));
        let four = half(STANDARD_DEVIATION / deviation(16.0));
        // Every group has the scale 32 d and the minimum 30 dmin, which makes the mean 0.
        let unit = STANDARD_DEVIATION / deviation(16.0) / 32.0;
        let groups = [half(unit), half(unit * 32.0 * 7.5 / 30.0)].concat();
        for block in blocks.chunks_exact_mut(self.stored().bytes) {
            match self {
                GgufType::F16 => {}
                GgufType::Q8_0 => block[..2].copy_from_slice(&eight),
                GgufType::Q4_0 => block[..2].copy_from_slice(&four),
                GgufType::Q4K => {
                    block[..4].copy_from_slice(&groups);
                    // The six bits of 32 and of 30: the upper two of four groups lie above those
                    // of the other four.
                    let [scale, minimum] = [32u8, 30];
                    block[4..8].fill(scale | (scale >> 4) << 6);
                    block[8..12].fill(minimum | (minimum >> 4) << 6);
                    block[12..16].fill((scale & 15) | (minimum & 15) << 4);
                }
            }
        }
    }
}

/// Writes a model to a new file. Passes the bytes of weights written since the last call to
/// `progress`. Returns the bytes of all weights.
///
/// # Errors
/// If the configuration is invalid or not that of a Llama model, or the file exists or cannot be
/// written.
pub fn write(recipe: &Recipe, kind: GgufType, path: &Path, progress: &dyn Fn(u64)) -> Result<u64> {
    let config = recipe.decoder()?;
    if recipe.config["model_type"] != "llama" {
        bail!(
            "expected a Llama model for GGUF, found {}",
            recipe.config["model_type"]
        );
    }
    let tensors = tensors::of(&config);
    let named = || path.display().to_string();
    let file = File::create_new(path).with_context(named)?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let header = header(recipe, &config, kind, &tensors)?;
    write_all(&mut file, &header, recipe.seed, kind, &tensors, progress).with_context(named)
}

fn write_all(
    file: &mut impl Write,
    header: &[u8],
    seed: u64,
    kind: GgufType,
    tensors: &[Tensor],
    progress: &dyn Fn(u64),
) -> io::Result<u64> {
    let normal = Normal::new(CacheType::F16, seed);
    file.write_all(header)?;
    pad(file, header.len() as u64)?;
    let mut total = 0;
    for tensor in tensors {
        let mut written = 0;
        for first in (0..tensor.elements()).step_by(PART) {
            let count = PART.min(tensor.elements() - first);
            let part = part(tensor, kind, &normal, seed, first..first + count);
            file.write_all(&part)?;
            written += part.len() as u64;
            progress(part.len() as u64);
        }
        pad(file, written)?;
        total += written;
    }
    file.flush()?;
    Ok(total)
}

fn pad(file: &mut impl Write, written: u64) -> io::Result<()> {
    let zeros = written.next_multiple_of(ALIGNMENT) - written;
    file.write_all(&[0; ALIGNMENT as usize][..zeros as usize])
}

/// The bytes of some elements of a tensor.
fn part(
    tensor: &Tensor,
    kind: GgufType,
    normal: &Normal,
    seed: u64,
    elements: std::ops::Range<usize>,
) -> Vec<u8> {
    let Some(kind) = kind.of(tensor) else {
        let value = match tensor.values {
            Values::Normal => 0.0,
            Values::Constant(value) => value,
        };
        return value.to_le_bytes().repeat(elements.len());
    };
    let stored = kind.stored();
    let mut bytes = vec![0; elements.len() / stored.elements * stored.bytes];
    if kind == GgufType::F16 {
        tensor.values.fill(
            CacheType::F16,
            normal,
            &tensor.name,
            elements.start,
            &mut bytes,
        );
        return bytes;
    }
    let key = tensor
        .name
        .bytes()
        .fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)));
    let mut counter = key.wrapping_add(elements.start as u64);
    for word in bytes.chunks_mut(8) {
        word.copy_from_slice(&mix(counter).to_le_bytes()[..word.len()]);
        counter = counter.wrapping_add(1);
    }
    kind.set_scales(&mut bytes);
    bytes
}

/// The magic number, the metadata and the list of tensors.
fn header(
    recipe: &Recipe,
    config: &DecoderConfig,
    kind: GgufType,
    tensors: &[Tensor],
) -> Result<Vec<u8>> {
    let number = |name: &str| recipe.config[name].as_f64().unwrap_or(0.0) as f32;
    let size = |value: usize| Value::Size(value as u32);
    let (tokens, kinds) = tokenizer::byte_level(config.vocab_size);
    let metadata = [
        ("general.architecture", Value::Text("llama")),
        ("general.name", Value::Text("random")),
        ("general.file_type", Value::Size(kind.file_type())),
        ("llama.context_length", size(config.max_position_embeddings)),
        ("llama.embedding_length", size(config.hidden_size)),
        ("llama.block_count", size(config.num_hidden_layers)),
        ("llama.feed_forward_length", size(config.intermediate_size)),
        (
            "llama.attention.head_count",
            size(config.num_attention_heads),
        ),
        (
            "llama.attention.head_count_kv",
            size(config.num_key_value_heads),
        ),
        ("llama.attention.key_length", size(config.head_dim)),
        ("llama.attention.value_length", size(config.head_dim)),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Value::Number(number("rms_norm_eps")),
        ),
        ("llama.rope.freq_base", Value::Number(number("rope_theta"))),
        ("llama.rope.dimension_count", size(config.head_dim)),
        ("llama.vocab_size", size(config.vocab_size)),
        ("tokenizer.ggml.model", Value::Text("gpt2")),
        ("tokenizer.ggml.pre", Value::Text("gpt-2")),
        ("tokenizer.ggml.tokens", Value::Texts(tokens)),
        ("tokenizer.ggml.token_type", Value::Kinds(kinds)),
        ("tokenizer.ggml.merges", Value::Texts(Vec::new())),
    ];
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        value.write(&mut out);
    }
    let mut offset = 0_u64;
    for tensor in tensors {
        let stored = kind.of(tensor).map_or(F32, GgufType::stored);
        text(&mut out, &name(&tensor.name)?);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for &size in tensor.shape.iter().rev() {
            out.extend((size as u64).to_le_bytes());
        }
        out.extend(stored.number.to_le_bytes());
        out.extend(offset.to_le_bytes());
        let bytes = tensor.elements() / stored.elements * stored.bytes;
        offset += (bytes as u64).next_multiple_of(ALIGNMENT);
    }
    Ok(out)
}

/// A value of the metadata.
enum Value {
    Size(u32),
    Number(f32),
    Text(&'static str),
    Texts(Vec<String>),
    Kinds(Vec<i32>),
}

impl Value {
    /// Appends the number of the type, then the value.
    fn write(self, out: &mut Vec<u8>) {
        const UINT32: u32 = 4;
        const INT32: u32 = 5;
        const FLOAT32: u32 = 6;
        const STRING: u32 = 8;
        const ARRAY: u32 = 9;
        let list = |out: &mut Vec<u8>, kind: u32, len: usize| {
            out.extend(ARRAY.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Value::Size(value) => {
                out.extend(UINT32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Value::Number(value) => {
                out.extend(FLOAT32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Value::Text(value) => {
                out.extend(STRING.to_le_bytes());
                text(out, value);
            }
            Value::Texts(values) => {
                list(out, STRING, values.len());
                values.iter().for_each(|value| text(out, value));
            }
            Value::Kinds(values) => {
                list(out, INT32, values.len());
                values
                    .iter()
                    .for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

/// Appends the length of a text and the text.
fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The name in GGUF of a tensor with the name of Hugging Face.
fn name(hugging_face: &str) -> Result<String> {
    const MODULES: [(&str, &str); 12] = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
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
    let of = |module: &str| {
        MODULES
            .iter()
            .find(|(name, _)| *name == module)
            .map(|found| found.1)
    };
    let found = hugging_face.strip_suffix(".weight").and_then(|module| {
        match module.strip_prefix("model.layers.") {
            None => of(module).map(str::to_owned),
            Some(rest) => {
                let (layer, module) = rest.split_once('.')?;
                Some(format!("blk.{layer}.{}", of(module)?))
            }
        }
    });
    let found = found.with_context(|| format!("GGUF: no name for the tensor {hugging_face}"))?;
    Ok(found + ".weight")
}

#[cfg(test)]
mod tests {
    use burn::tensor::{FloatDType, Int, Tensor};
    use sparq::Method;
    use sparq_measure::model::ModelName;
    use sparq_models::checkpoint::Checkpoint;
    use sparq_models::text::TextTokenizer;
    use sparq_models::{CausalLm, Decoder};

    use super::*;

    fn recipe(model: ModelName) -> Recipe {
        let mut config = model.config_json();
        for (key, size) in [
            ("hidden_size", 256),
            ("intermediate_size", 512),
            ("num_hidden_layers", 2),
            ("num_attention_heads", 4),
            ("num_key_value_heads", 2),
            ("head_dim", 64),
            ("vocab_size", 300),
            ("max_position_embeddings", 64),
        ] {
            config[key] = size.into();
        }
        Recipe {
            config,
            dtype: CacheType::F32,
            seed: 7,
            prompts: vec![],
            shard_bytes: u64::MAX,
        }
    }

    #[test]
    fn made_gguf_files_load_with_normal_weights() {
        let device = sparq_device::available()[0].open();
        let parent = tempfile::tempdir().unwrap();
        for &kind in GgufType::value_variants() {
            let path = parent.path().join(format!("{kind:?}.gguf"));
            let written = write(&recipe(ModelName::SmolLm2), kind, &path, &|_| ()).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            assert_eq!(checkpoint.num_bytes(), written, "{kind:?}");
            let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
            assert_eq!((config.head_dim, config.tie_word_embeddings), (64, true));
            let model = Decoder::load(&checkpoint, &config, FloatDType::F32, &device).unwrap();
            let mut cache = model
                .new_cache(1, 8, FloatDType::F32, &Method::DENSE)
                .unwrap();
            let tokens = Tensor::<2, Int>::from_ints([[1, 2, 3]], &device);
            let logits = model.prefill(tokens, &mut cache, 1).unwrap();
            let logits: Vec<f32> = logits.into_data().try_to_vec().unwrap();
            // The codes of Q4_0 are not centred, which moves all logits alike.
            let mean = logits.iter().sum::<f32>() / logits.len() as f32;
            let squares = logits.iter().map(|x| (x - mean).powi(2)).sum::<f32>();
            let deviation = (squares / logits.len() as f32).sqrt();
            // The head multiplies a normalised row of 256 by weights of this deviation.
            let expected = STANDARD_DEVIATION as f32 * 16.0;
            assert!(
                (deviation / expected - 1.0).abs() < 0.4,
                "{kind:?}: {deviation}"
            );
            let tokenizer = TextTokenizer::from_folder(&path).unwrap();
            assert_eq!(tokenizer.encode("a river", true).unwrap().len(), 7);
        }
    }

    #[test]
    fn made_gguf_files_replace_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("model.gguf");
        let error = |model: ModelName| {
            let written = write(&recipe(model), GgufType::Q8_0, &path, &|_| ());
            format!("{:#}", written.unwrap_err())
        };
        assert!(error(ModelName::Qwen3).contains("qwen3"));
        std::fs::write(&path, "mine").unwrap();
        assert!(error(ModelName::SmolLm2).contains("model.gguf"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}
