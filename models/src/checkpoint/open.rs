//! Opens a checkpoint on disk or in memory.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs, io,
    path::{Path, PathBuf},
    sync::{OnceLock, atomic::AtomicBool},
};

use serde_json::Value;

use super::{
    Checkpoint, CheckpointError,
    base::{Origin, Tracked},
    decode::Stored,
    gguf::Gguf,
    header::read_header,
    json::{describe, parse_json, read_json, read_json_if_present},
    packed::{self, MANIFEST},
    small_file::kind_of,
    source::Source,
    torch,
    weight_files::{WeightFiles, read_index},
};

/// The configuration of an adapter (PEFT).
const ADAPTER_CONFIG: &str = "adapter_config.json";

impl Checkpoint {
    /// Opens the checkpoint in the folder `dir`: `config.json`, and the first of these that is
    /// there:
    ///
    /// - `model.safetensors`, or the shards of `model.safetensors.index.json`,
    /// - the only other safetensors file,
    /// - `pytorch_model.bin`, or the shards of `pytorch_model.bin.index.json`,
    /// - a GGUF file, or the first part of one.
    ///
    /// `dir` may also be a GGUF file, by its name or its first bytes. A folder that a
    /// [`Conversion`](super::Conversion) wrote is mapped into memory.
    ///
    /// # Errors
    /// If the folder or a file is missing, cannot be read or is malformed, or if files contradict
    /// each other.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        if let Some(file) = Gguf::locate(dir)? {
            return Self::from_gguf(Gguf::open(&file)?);
        }
        let path = dir.to_path_buf();
        let metadata = fs::metadata(dir).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CheckpointError::MissingFolder { path: path.clone() },
            _ => CheckpointError::read(dir)(error),
        })?;
        if !metadata.is_dir() {
            let found = if metadata.is_file() {
                // Refuses a pointer of Git LFS, whatever its name.
                Source::open(dir)?;
                "a file"
            } else {
                kind_of(&metadata)
            };
            return Err(CheckpointError::NotAFolder { path, found });
        }
        let config_path = dir.join("config.json");
        if !config_path.exists() {
            refuse_adapter(dir)?;
        }
        let config = read_json(&config_path)?;
        let mut checkpoint = Self::empty(config, config_path, path, Origin::Folder);
        if dir.join(MANIFEST).exists() {
            checkpoint.add_packed()?;
            return Ok(checkpoint);
        }
        let names = file_names(dir)?;
        let has_adapter = dir.join(ADAPTER_CONFIG).exists();
        match WeightFiles::choose(names.iter().map(String::as_str)) {
            Some(WeightFiles::Single(name)) => checkpoint.add(Source::open(&dir.join(name))?)?,
            Some(WeightFiles::Sharded(name)) => checkpoint.add_shards(&dir.join(name))?,
            None => {
                refuse_adapter(dir)?;
                let weights = names.iter().filter(|name| is_weights(name));
                let weights: Vec<_> = weights.map(String::as_str).collect();
                let found = match weights.is_empty() {
                    true => "no file of weights".into(),
                    false => weights.join(", "),
                };
                return Err(CheckpointError::NoWeights {
                    path: dir.into(),
                    found,
                });
            }
        }
        if has_adapter {
            let dir = dir.display();
            tracing::warn!("{dir}: the adapter (LoRA) beside the model is not applied");
        }
        Ok(checkpoint)
    }

    /// Opens a checkpoint in memory: the bytes of `config.json` and of one safetensors file. `name`
    /// stands for its folder in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(
        name: &str,
        config: &[u8],
        safetensors: impl Into<Cow<'static, [u8]>>,
    ) -> Result<Self, CheckpointError> {
        let path = PathBuf::from(name);
        let config_path = path.join("config.json");
        let source = Source::from_bytes(path.join("model.safetensors"), safetensors.into());
        let config = parse_json(config, &config_path)?;
        let mut checkpoint = Self::empty(config, config_path, path, Origin::Memory);
        checkpoint.add(source)?;
        Ok(checkpoint)
    }

    /// Creates a checkpoint without tensors.
    fn empty(config: Value, config_path: PathBuf, path: PathBuf, origin: Origin) -> Self {
        Self {
            config,
            config_path,
            path,
            origin,
            sources: Vec::new(),
            tensors: BTreeMap::new(),
            manifest: None,
            calibration: None,
            ties: OnceLock::new(),
            floats: false,
        }
    }

    fn from_gguf(gguf: Gguf) -> Result<Self, CheckpointError> {
        let path = gguf.path().to_path_buf();
        let family = gguf.family_name();
        let origin = Origin::Gguf { family };
        let mut checkpoint = Self::empty(gguf.config()?, path.clone(), path, origin);
        let tensors = gguf.tensors()?;
        for (source, tensors) in gguf.into_sources().zip(tensors) {
            checkpoint.add_tensors(source, tensors)?;
        }
        Ok(checkpoint)
    }

    fn add_packed(&mut self) -> Result<(), CheckpointError> {
        let (manifest, tensors) = packed::open(&self.path)?;
        for (name, stored, source) in tensors {
            self.add_tensors(source, [(name, stored)])?;
        }
        self.manifest = Some(manifest);
        Ok(())
    }

    fn add(&mut self, source: Source) -> Result<(), CheckpointError> {
        let tensors = tensors_of(&source)?;
        self.add_tensors(source, tensors)
    }

    fn add_tensors(
        &mut self,
        source: Source,
        tensors: impl IntoIterator<Item = (String, Stored)>,
    ) -> Result<(), CheckpointError> {
        self.sources.push(source);
        let index = self.sources.len() - 1;
        for (name, stored) in tensors {
            if !stored.fits_into_memory() {
                return Err(CheckpointError::Dimensions {
                    path: self.sources[index].path().into(),
                    tensor: name,
                    found: stored.shape,
                });
            }
            let tracked = Tracked {
                stored,
                source: index,
                used: AtomicBool::new(false),
            };
            match self.tensors.entry(name) {
                Entry::Vacant(entry) => drop(entry.insert(tracked)),
                Entry::Occupied(entry) => {
                    return Err(CheckpointError::Duplicate {
                        tensor: entry.key().clone(),
                        first: self.sources[entry.get().source].path().into(),
                        second: self.sources[index].path().into(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Adds the shards of an index. A tensor in several shards is the one in the shard that the
    /// index names: the others are left over from an earlier version of the model.
    fn add_shards(&mut self, index: &Path) -> Result<(), CheckpointError> {
        let map = read_index(index)?;
        let mut shards = Vec::new();
        for shard in map.values().collect::<BTreeSet<_>>() {
            let path = self.path.join(shard);
            let source = match Source::open(&path) {
                Err(CheckpointError::Read { error, .. })
                    if error.kind() == io::ErrorKind::NotFound =>
                {
                    let tensor = map.iter().find(|(_, file)| *file == shard);
                    return Err(CheckpointError::MissingShard {
                        index: index.into(),
                        tensor: tensor.map_or_else(String::new, |(tensor, _)| tensor.clone()),
                        shard: path,
                    });
                }
                other => other?,
            };
            let tensors = tensors_of(&source)?;
            shards.push((shard, source, tensors));
        }
        let names = |(shard, _, tensors): &(&String, Source, Vec<(String, Stored)>)| {
            let names = tensors.iter().map(|(name, _)| name.clone());
            (shard.to_string(), names.collect::<BTreeSet<_>>())
        };
        let held: BTreeMap<String, BTreeSet<String>> = shards.iter().map(names).collect();
        let is_in_its_shard = |tensor: &str, shard: &String| {
            let names = held.get(shard);
            names.is_some_and(|names| names.contains(tensor))
        };
        for (shard, source, tensors) in shards {
            let belongs_here = |(tensor, _): &(String, Stored)| match map.get(tensor) {
                Some(other) if other != shard => !is_in_its_shard(tensor, other),
                _ => true,
            };
            self.add_tensors(source, tensors.into_iter().filter(belongs_here))?;
        }
        let absent = map.keys().filter(|tensor| !self.contains(tensor));
        let absent: Vec<_> = absent.collect();
        if let Some(first) = absent.first() {
            // A tensor that the model needs is an error when it is read.
            tracing::warn!(
                "{}: no shard has {} of its tensors, the first is \"{first}\"",
                index.display(),
                absent.len(),
            );
        }
        Ok(())
    }
}

/// Reads the header of a file of weights.
fn tensors_of(source: &Source) -> Result<Vec<(String, Stored)>, CheckpointError> {
    let name = source.path().as_os_str().to_string_lossy();
    match name.ends_with(torch::ENDING) {
        true => torch::tensors(source),
        false => read_header(source),
    }
}

/// Returns an error that names the base model, if a folder has an adapter in place of a model.
fn refuse_adapter(dir: &Path) -> Result<(), CheckpointError> {
    let Some(config) = read_json_if_present(&dir.join(ADAPTER_CONFIG))? else {
        return Ok(());
    };
    let base = config.get("base_model_name_or_path");
    Err(CheckpointError::Adapter {
        path: dir.into(),
        base: base.map_or("a model that it does not name".into(), describe),
    })
}

/// Returns the names of the entries of a folder, sorted.
pub(super) fn file_names(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    let read = CheckpointError::read(dir);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(&read)? {
        // Names that are not Unicode are skipped: no file of a checkpoint has one.
        names.extend(entry.map_err(&read)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Returns whether a file looks like weights, in a supported format or not. The error for a folder
/// without supported weights lists them.
fn is_weights(name: &str) -> bool {
    [".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx"]
        .iter()
        .any(|ending| name.ends_with(ending))
}
