//! Files of weights in the format safetensors.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};
use sparq_measure::shape::CacheType;

use super::random::Normal;
use super::tensors::Tensor;

/// The file that names the shard of each tensor.
pub const INDEX: &str = "model.safetensors.index.json";

/// Elements that are made and written at a time, which bounds the memory of a thread.
const BLOCK: usize = 1 << 20;

/// The size of shards.
#[derive(Clone, Copy, Debug)]
pub struct ShardSize {
    pub element_bytes: usize,
    /// Bytes of weights in a shard, unless one tensor has more.
    pub limit: u64,
}

impl ShardSize {
    fn bytes(self, tensor: &Tensor) -> u64 {
        (tensor.elements() * self.element_bytes) as u64
    }
}

/// A file with some of the tensors.
pub struct Shard<'a> {
    pub name: String,
    tensors: &'a [Tensor],
    element_bytes: usize,
}

/// Distributes the tensors in order.
pub fn plan(tensors: &[Tensor], size: ShardSize) -> Vec<Shard<'_>> {
    let mut parts = Vec::new();
    let (mut begin, mut bytes) = (0, 0_u64);
    for (index, tensor) in tensors.iter().enumerate() {
        let more = size.bytes(tensor);
        if index > begin && bytes.saturating_add(more) > size.limit {
            parts.push(&tensors[begin..index]);
            (begin, bytes) = (index, 0);
        }
        bytes += more;
    }
    parts.push(&tensors[begin..]);
    let count = parts.len();
    let name = |index: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    let shard = |(index, tensors)| Shard {
        name: name(index),
        tensors,
        element_bytes: size.element_bytes,
    };
    parts.into_iter().enumerate().map(shard).collect()
}

/// The contents of [`INDEX`].
pub fn index(shards: &[Shard<'_>], bytes: u64) -> Value {
    let shards = shards.iter();
    let names = shards.flat_map(|shard| {
        let tensors = shard.tensors.iter();
        tensors.map(|tensor| (tensor.name.clone(), Value::from(shard.name.clone())))
    });
    let map: Map<String, Value> = names.collect();
    json!({"metadata": {"total_size": bytes}, "weight_map": map})
}

impl Shard<'_> {
    /// Bytes of its weights.
    pub fn bytes(&self) -> u64 {
        let elements = self.tensors.iter().map(|tensor| tensor.elements() as u64);
        elements.sum::<u64>() * self.element_bytes as u64
    }

    /// Writes the file. Passes the bytes of every block to `progress`.
    pub fn write(
        &self,
        path: &Path,
        dtype: CacheType,
        normal: &Normal,
        progress: &(dyn Fn(u64) + Sync),
    ) -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(&self.header(dtype))?;
        let mut block = vec![0; BLOCK * self.element_bytes];
        for tensor in self.tensors {
            let elements = tensor.elements();
            for first in (0..elements).step_by(BLOCK) {
                let count = BLOCK.min(elements - first);
                let part = &mut block[..count * self.element_bytes];
                tensor.values.fill(dtype, normal, &tensor.name, first, part);
                file.write_all(part)?;
                progress(part.len() as u64);
            }
        }
        Ok(())
    }

    /// The length of the JSON text in eight bytes, and the text, padded to a multiple of eight.
    fn header(&self, dtype: CacheType) -> Vec<u8> {
        let name = match dtype {
            CacheType::F32 => "F32",
            CacheType::F16 => "F16",
            CacheType::Bf16 => "BF16",
        };
        let mut entries = Map::new();
        entries.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut begin = 0;
        for tensor in self.tensors {
            let end = begin + tensor.elements() * self.element_bytes;
            let entry = json!({"dtype": name, "shape": tensor.shape, "data_offsets": [begin, end]});
            entries.insert(tensor.name.clone(), entry);
            begin = end;
        }
        let mut text = Value::Object(entries).to_string();
        let padded = text.len().next_multiple_of(8);
        text.extend(std::iter::repeat_n(' ', padded - text.len()));
        let length = text.len() as u64;
        [&length.to_le_bytes()[..], text.as_bytes()].concat()
    }
}
