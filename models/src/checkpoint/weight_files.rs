//! Chooses the files of a folder that hold the weights.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use serde_json::Value;

use super::{CheckpointError, json::describe, json::read_json};

/// The files with the weights of a folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WeightFiles {
    /// One file.
    Single(String),
    /// The shards listed by the index of this name.
    Sharded(String),
}

impl WeightFiles {
    /// Chooses among the names of all files of a folder, in the order of transformers:
    /// `model.safetensors`, its index, the only other safetensors file, `pytorch_model.bin`, its
    /// index. A single shard without its index is a part of a model and is not chosen. Neither is
    /// the adapter of a model.
    pub(crate) fn choose<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<Self> {
        let find = |wanted: &str| names.clone().find(|name| *name == wanted).map(String::from);
        let standard = |single: &str| {
            let single_file = find(single).map(Self::Single);
            single_file.or_else(|| find(&format!("{single}.index.json")).map(Self::Sharded))
        };
        let alone = || {
            let is_model = |name: &&str| {
                name.ends_with(".safetensors") && *name != "adapter_model.safetensors"
            };
            let mut others = names.clone().filter(is_model);
            match (others.next(), others.next()) {
                (Some(only), None) if !only.contains("-of-") => Some(Self::Single(only.into())),
                _ => None,
            }
        };
        standard("model.safetensors")
            .or_else(alone)
            .or_else(|| standard("pytorch_model.bin"))
    }
}

/// Reads an index of shards. Returns for each tensor the name of its file, which is inside the
/// folder of the index.
pub(crate) fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let malformed = |key: String, expected, found| CheckpointError::Index {
        path: path.into(),
        key,
        expected,
        found,
    };
    let index = read_json(path)?;
    let map = match index.get("weight_map") {
        Some(Value::Object(map)) if !map.is_empty() => map,
        other => {
            let found = other.map_or("nothing".into(), describe);
            return Err(malformed(
                "weight_map".into(),
                "an object that names the shard of each tensor",
                found,
            ));
        }
    };
    let shard_of = |(tensor, shard): (&String, &Value)| match shard {
        Value::String(shard) if stays_inside(shard) => Ok((tensor.clone(), shard.clone())),
        other => Err(malformed(
            format!("weight_map.{tensor}"),
            "the name of a file inside the folder",
            describe(other),
        )),
    };
    map.iter().map(shard_of).collect()
}

/// Returns whether a name stays inside the folder that it is joined to, on every operating system.
///
/// Links inside the folder are followed: the cache of the Hugging Face hub consists of links, and
/// whoever can create a link can also create the file.
pub(crate) fn stays_inside(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\\', ':', '\0'])
        && Path::new(name)
            .components()
            .all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_stay_inside_the_folder() {
        for name in ["model-1.safetensors", "shards/model-1.safetensors", "..a"] {
            assert!(stays_inside(name), "{name}");
        }
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "..",
            ".",
            r"..\x",
            r"C:\x",
            "C:x",
            "a\0b",
        ] {
            assert!(!stays_inside(name), "{name}");
        }
    }

    #[test]
    fn choose_follows_the_order_of_transformers() {
        let choose = |names: &[&'static str]| WeightFiles::choose(names.iter().copied());
        let single = |name: &str| Some(WeightFiles::Single(name.into()));
        let index = "model.safetensors.index.json";
        assert_eq!(
            choose(&[index, "model.safetensors"]),
            single("model.safetensors")
        );
        assert_eq!(
            choose(&["a.safetensors", index]),
            Some(WeightFiles::Sharded(index.into()))
        );
        assert_eq!(
            choose(&["a.safetensors", "b.json"]),
            single("a.safetensors")
        );
        assert_eq!(choose(&["a.safetensors", "b.safetensors"]), None);
        let bin_index = "pytorch_model.bin.index.json";
        assert_eq!(
            choose(&["pytorch_model.bin", "a.safetensors"]),
            single("a.safetensors")
        );
        assert_eq!(
            choose(&[bin_index, "pytorch_model.bin"]),
            single("pytorch_model.bin")
        );
        assert_eq!(
            choose(&[bin_index, "pytorch_model-00001-of-00002.bin"]),
            Some(WeightFiles::Sharded(bin_index.into()))
        );
        assert_eq!(choose(&["training_args.bin"]), None);
        assert_eq!(choose(&["adapter_model.safetensors"]), None);
        assert_eq!(choose(&["model-00001-of-00002.safetensors"]), None);
        assert_eq!(choose(&[]), None);
    }
}
