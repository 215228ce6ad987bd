//! Helpers of all modules: a checkpoint of a few kilobytes, and ways to run the program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The vocabulary of the small checkpoint.
pub const VOCAB: usize = 32;
/// The context of the small checkpoint.
pub const CONTEXT: usize = 64;
/// The head dimension of the small checkpoint.
pub const HEAD_DIM: usize = 8;
const HIDDEN: usize = 16;
const INTERMEDIATE: usize = 24;

/// Returns the program, isolated from the environment of the caller.
pub fn sparq() -> Command {
    let mut command = Command::cargo_bin("sparq").expect("the program is built with its tests");
    command
        .env_remove("BURN_DEVICE")
        .env_remove("RUST_LOG")
        .env_remove("SPARQ_CACHE_DIR")
        .env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs a command line.
pub fn run(line: &str) -> Output {
    let run = sparq().args(words(line)).output();
    run.expect("the program starts")
}

/// Runs a command that has to fail on bad input: exit code 2, no panic, an empty standard output,
/// and a message that contains all `parts`.
pub fn fails(line: &str, parts: &[&str]) {
    let output = run(line);
    let message = String::from_utf8(output.stderr).expect("messages are UTF-8");
    assert_eq!(output.status.code(), Some(2), "{line}: {message}");
    assert!(!message.contains("panicked"), "{line}: {message}");
    let written = String::from_utf8_lossy(&output.stdout);
    assert!(written.is_empty(), "{line}: {written}");
    contains(&message, parts);
}

/// Runs a command that has to succeed with `--json`, and parses its document.
pub fn document(line: &str) -> Value {
    // from_str refuses anything after the first document.
    let text = stdout(&format!("{line} --json"));
    serde_json::from_str(&text).expect("standard output is one JSON document")
}

/// Runs a command that has to succeed, and returns its standard output.
pub fn stdout(line: &str) -> String {
    let output = run(line);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {message}");
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

/// Splits a command line into arguments. Quotes enclose whole arguments.
pub fn words(line: &str) -> Vec<&str> {
    let parts = line.split('\'').enumerate();
    let words = parts.flat_map(|(index, part)| match index % 2 {
        0 => part.split_whitespace().collect(),
        _ => vec![part],
    });
    words.collect()
}

/// Asserts that a text contains all parts.
pub fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "expected {part:?} in: {text}");
    }
}

/// Asserts that an object has these fields with these values.
pub fn has_fields(object: &Value, fields: &Value) {
    for (key, value) in fields.as_object().expect("an object") {
        assert_eq!(&object[key], value, "{key} of {object}");
    }
}

/// Tensors by name, each with shape and values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A folder with a complete Llama checkpoint, for tests to damage.
pub struct Checkpoint {
    folder: TempDir,
    /// The tensors of the weights file.
    pub tensors: Tensors,
    /// The configuration.
    pub config: Value,
}

impl Checkpoint {
    /// Writes the checkpoint.
    pub fn new() -> Self {
        let mut checkpoint = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            tensors: weights(),
            config: config(),
        };
        checkpoint.write();
        checkpoint
    }

    /// Writes `config` and `tensors` again.
    pub fn write(&mut self) {
        self.write_file("config.json", self.config.to_string().as_bytes());
        write_tensors(&self.path().join("model.safetensors"), &self.tensors);
    }

    /// Moves the weights into two shards with an index, and returns the index.
    pub fn shard(&mut self) -> Value {
        let is_first = |name: &str| name.contains("layers.0.self_attn");
        let part = |first: bool| {
            self.tensors
                .iter()
                .filter(|(name, _)| is_first(name) == first)
                .map(|(name, tensor)| (name.clone(), tensor.clone()))
                .collect::<Tensors>()
        };
        let names = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        write_tensors(&self.path().join(names[0]), &part(true));
        write_tensors(&self.path().join(names[1]), &part(false));
        std::fs::remove_file(self.path().join("model.safetensors"))
            .expect("the whole file was there");
        let map: BTreeMap<&String, &str> = self
            .tensors
            .keys()
            .map(|name| (name, names[usize::from(!is_first(name))]))
            .collect();
        let index = json!({ "metadata": {}, "weight_map": map });
        self.write_index(&index);
        index
    }

    /// Writes the index of the shards.
    pub fn write_index(&self, index: &Value) {
        self.write_file("model.safetensors.index.json", index.to_string().as_bytes());
    }

    /// Writes a file of the folder.
    pub fn write_file(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).expect("the folder can be written");
    }

    /// Returns the folder.
    pub fn path(&self) -> PathBuf {
        self.folder.path().to_path_buf()
    }

    /// Returns the folder as an argument.
    pub fn argument(&self) -> String {
        self.path().display().to_string()
    }
}

/// Writes tensors as F32.
pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let bytes = tensors.iter().map(|(name, (shape, values))| {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        (name, shape, bytes)
    });
    let bytes: Vec<_> = bytes.collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes);
        (name, view.expect("shape and values agree"))
    });
    let file = safetensors::serialize(views, None).expect("the tensors can be serialized");
    std::fs::write(path, file).expect("the folder can be written");
}

/// Writes `input_ids`.
pub fn write_ids(path: &Path, shape: [usize; 2], ids: &[i64]) {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::I64, shape.to_vec(), &bytes).expect("shape and values agree");
    let file =
        safetensors::serialize([("input_ids", view)], None).expect("the tensors can be serialized");
    std::fs::write(path, file).expect("the folder can be written");
}

/// Reads `logits` and its shape.
pub fn read_logits(path: &Path) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).expect("the file is there");
    let file = SafeTensors::deserialize(&bytes).expect("the file is whole");
    let tensor = file.tensor("logits").expect("the file holds logits");
    assert_eq!((file.len(), tensor.dtype()), (1, Dtype::F32));
    (tensor.shape().to_vec(), floats(&tensor))
}

/// Returns the values of an F32 tensor.
pub fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    let values = tensor.data().as_chunks().0.iter();
    values.map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "torch_dtype": "float32"
    })
}

fn weights() -> Tensors {
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: Vec<usize>| {
        let count: usize = shape.iter().product();
        let seed = name.len() + tensors.len() * 977;
        // A fixed scatter within (-0.5, 0.5), different for every tensor. Norms are around 1.
        let scatter = |index: usize| ((index * 7919 + seed * 104_729) % 1999) as f32 / 1999.0 - 0.5;
        let value = |index| match shape.len() {
            1 => 1.0 + 0.1 * scatter(index),
            _ => scatter(index),
        };
        tensors.insert(name, (shape.clone(), (0..count).map(value).collect()));
    };
    add("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]);
    add("model.norm.weight".into(), vec![HIDDEN]);
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![2 * HEAD_DIM, HIDDEN]),
            ("self_attn.k_proj", vec![HEAD_DIM, HIDDEN]),
            ("self_attn.v_proj", vec![HEAD_DIM, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, 2 * HEAD_DIM]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ] {
            add(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    tensors
}
