//! An open checkpoint: [`Checkpoint`].

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use burn::tensor::{AllocationProperty, Bytes, DType, Device, FloatDType, Tensor, TensorData};
use memmap2::MmapMut;
use serde_json::Value;
use sparq::SparqConfig;

use crate::LayerSharing;
use crate::config::ConfigError;

use super::{
    CheckpointError,
    decode::{self, Request, Stored},
    formats::StoredType,
    gguf,
    loader::Part,
    packed::{self, MANIFEST, Manifest},
    source::Source,
    upload::place,
};

/// A Hugging Face checkpoint, or a GGUF file presented as one: a configuration, and tensors by
/// name.
///
/// Opening reads the configuration and the headers of the files with weights.
/// [`tensor`](Self::tensor) reads a tensor. The checkpoint tracks which tensors were read:
/// [`unused`](Self::unused) names the others.
#[derive(Debug)]
pub struct Checkpoint {
    pub(super) config: Value,
    pub(super) config_path: PathBuf,
    /// The folder, or for a checkpoint in memory a name for messages.
    pub(super) path: PathBuf,
    pub(super) origin: Origin,
    pub(super) sources: Vec<Source>,
    pub(super) tensors: BTreeMap<String, Tracked>,
    /// The manifest of a converted model.
    pub(super) manifest: Option<Manifest>,
    /// The manifest that gives settings and measurements in place of the own one, with its file.
    pub(super) calibration: Option<(PathBuf, Manifest)>,
    /// Whether the embedding table and the output matrix of a tied model hold the same weights,
    /// once they were compared.
    pub(super) ties: OnceLock<bool>,
    /// Whether models get floats instead of blocks.
    pub(super) floats: bool,
}

/// The source that a checkpoint was opened from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Folder,
    Gguf {
        /// Its name in `general.architecture`.
        family: &'static str,
    },
    Memory,
}

#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) stored: Stored,
    /// Index in `sources`.
    pub(super) source: usize,
    pub(super) used: AtomicBool,
}

/// The header entry of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorEntry<'a> {
    /// The stored type.
    pub dtype: StoredType,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its file.
    pub file: &'a Path,
}

impl Checkpoint {
    /// Returns the content of `config.json`, or its equivalent from a GGUF file.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Returns the path of the [`config`](Self::config), for messages.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// Returns the folder, if the checkpoint is one on disk.
    pub fn dir(&self) -> Option<&Path> {
        (self.origin == Origin::Folder).then_some(&*self.path)
    }

    /// Returns the same checkpoint with zeros for weights, which take no memory. Building a CPU
    /// model from it checks that the checkpoint has every tensor in the right shape.
    ///
    /// # Errors
    /// If the system has no address range of the size of the largest tensor.
    pub fn blank(&self) -> Result<Self, CheckpointError> {
        let stored = self.tensors.values().map(|tracked| &tracked.stored);
        let widest = size_of::<f64>();
        let bytes = stored.map(|stored| stored.elements().saturating_mul(widest));
        let largest = bytes.max();
        let path = &self.path;
        let zeros = MmapMut::map_anon(largest.unwrap_or(0).max(1));
        let zeros = zeros.map_err(CheckpointError::read(path))?;
        let zeros = bytes::Bytes::from_owner(zeros);
        let source = |_: &Source| {
            Source::blank(
                path.clone(),
                Bytes::from_shared(zeros.clone(), AllocationProperty::Other),
            )
        };
        let tensors = self.tensors.iter().map(|(name, tracked)| {
            let stored = Stored {
                shape: tracked.stored.shape.clone(),
                checksum: None,
                within: None,
                ..tracked.stored
            };
            let tracked = Tracked {
                stored,
                source: tracked.source,
                used: AtomicBool::new(false),
            };
            (name.clone(), tracked)
        });
        Ok(Self {
            config: self.config.clone(),
            config_path: self.config_path.clone(),
            path: path.clone(),
            origin: self.origin,
            sources: self.sources.iter().map(source).collect(),
            tensors: tensors.collect(),
            manifest: self.manifest.clone(),
            calibration: self.calibration.clone(),
            ties: self.ties.clone(),
            floats: self.floats,
        })
    }

    /// Sets whether models get all weights as floats. By default, weights in blocks stay packed on
    /// devices that multiply by them.
    pub fn with_floats(self, floats: bool) -> Self {
        Self { floats, ..self }
    }

    /// Checks every tensor that has a checksum against it. Reading a tensor does the same.
    ///
    /// # Errors
    /// If a checksum differs.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        let mut tensors = self.tensors.iter();
        tensors.try_for_each(|(name, tracked)| self.verify_tensor(tracked, name))
    }

    /// Returns the names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns whether both names belong to the same bytes of the same file.
    pub fn are_one(&self, first: &str, second: &str) -> bool {
        let place = |name: &str| {
            let Tracked { stored, source, .. } = self.tensors.get(name)?;
            Some((
                *source,
                stored.offset,
                &stored.shape,
                stored.dtype,
                stored.layout,
            ))
        };
        let first = place(first);
        first.is_some() && first == place(second)
    }

    /// Returns whether a model whose configuration ties the output matrix `head` to the table
    /// `embed` has one matrix: the file lacks one of the two, or both hold the same bytes.
    pub(crate) fn ties(&self, embed: &str, head: &str) -> Result<bool, CheckpointError> {
        if let Some(known) = self.ties.get() {
            return Ok(*known);
        }
        let both = (self.tensors.get(embed), self.tensors.get(head));
        let equal = match both {
            (Some(embed_entry), Some(head_entry)) => {
                self.are_one(embed, head) || self.are_equal(embed_entry, head_entry)?
            }
            _ => true,
        };
        Ok(*self.ties.get_or_init(|| equal))
    }

    /// Returns whether [`ties`](Self::ties) found another output matrix.
    pub(crate) fn has_another_head(&self) -> bool {
        self.ties.get() == Some(&false)
    }

    /// Compares the bytes of two tensors.
    fn are_equal(&self, first: &Tracked, second: &Tracked) -> Result<bool, CheckpointError> {
        const CHUNK: u64 = 1 << 20;
        let kind = |tracked: &Tracked| (tracked.stored.dtype, tracked.stored.layout);
        let (a, b) = (&first.stored, &second.stored);
        if kind(first) != kind(second) || a.shape != b.shape || a.bytes != b.bytes {
            return Ok(false);
        }
        let read = |tracked: &Tracked, at: u64, buffer: &mut [u8]| {
            self.sources[tracked.source].read_at(tracked.stored.offset + at, buffer)
        };
        let (mut left, mut right) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
        for at in (0..a.bytes).step_by(CHUNK as usize) {
            let length = CHUNK.min(a.bytes - at) as usize;
            read(first, at, &mut left[..length])?;
            read(second, at, &mut right[..length])?;
            if left[..length] != right[..length] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the header entry of a tensor.
    pub fn entry(&self, name: &str) -> Option<TensorEntry<'_>> {
        self.tensors.get(name).map(|tracked| TensorEntry {
            dtype: tracked.stored.dtype,
            shape: &tracked.stored.shape,
            file: self.sources[tracked.source].path(),
        })
    }

    /// Returns the settings of SparQ that a converted model recommends.
    pub fn attention(&self) -> Option<SparqConfig> {
        self.calibrated()?.attention
    }

    /// Returns the measurement of shared layers that was stored with a converted model.
    pub fn sharing(&self) -> Option<&LayerSharing> {
        self.calibrated()?.sharing.as_ref()
    }

    /// Takes settings and measurements from a file `sparq.json` of the same model in another form.
    ///
    /// # Errors
    /// If the file cannot be read, or is no manifest of a converted model.
    pub fn with_calibration(self, path: &Path) -> Result<Self, CheckpointError> {
        let manifest = Manifest::read_file(path)?;
        Ok(Self {
            calibration: Some((path.into(), manifest)),
            ..self
        })
    }

    fn calibrated(&self) -> Option<&Manifest> {
        let given = self.calibration.as_ref().map(|(_, manifest)| manifest);
        given.or(self.manifest.as_ref())
    }

    /// Returns the file of settings and measurements.
    pub(crate) fn calibration_path(&self) -> PathBuf {
        match &self.calibration {
            Some((path, _)) => path.clone(),
            None => self.path.join(MANIFEST),
        }
    }

    /// Returns the number of weights in all tensors.
    pub fn num_params(&self) -> u64 {
        let stored = self.tensors.values().map(|tracked| &tracked.stored);
        stored.map(|stored| stored.elements() as u64).sum()
    }

    /// Returns the number of stored bytes of all tensors.
    pub fn num_bytes(&self) -> u64 {
        let stored = self.tensors.values().map(|tracked| &tracked.stored);
        stored.map(|stored| stored.bytes).sum()
    }

    /// Returns the float type that most weights are stored in. `None` if most are in blocks of
    /// quantised weights.
    pub fn float_type(&self) -> Option<FloatDType> {
        let mut counts = Vec::<(Option<FloatDType>, usize)>::new();
        for Tracked { stored, .. } in self.tensors.values() {
            let float = stored.dtype.float().map(|(float, _)| float);
            match counts.iter_mut().find(|(known, _)| *known == float) {
                Some((_, count)) => *count += stored.elements(),
                None => counts.push((float, stored.elements())),
            }
        }
        counts.into_iter().max_by_key(|(_, count)| *count)?.0
    }

    /// Returns the bytes of each tensor in `dtype`.
    pub(super) fn sizes(&self, dtype: FloatDType) -> impl Iterator<Item = usize> {
        let bytes = DType::from(dtype).size();
        let stored = self.tensors.values().map(|tracked| &tracked.stored);
        stored.map(move |stored| stored.elements() * bytes)
    }

    /// Returns the memory of the weights on a device that multiplies by blocks: floats in `dtype`,
    /// and blocks as they are stored, or none if they are `mapped`. `None` if there are no blocks.
    pub fn bytes_with_blocks(&self, dtype: FloatDType, mapped: bool) -> Option<u64> {
        let is_packed = |stored: &Stored| {
            let packed = stored.dtype.packed().is_some() && stored.shape.len() == 2;
            packed && !self.floats
        };
        let stored = || self.tensors.values().map(|tracked| &tracked.stored);
        if !stored().any(is_packed) {
            return None;
        }
        let element = DType::from(dtype).size() as u64;
        let bytes = stored().map(|stored| match is_packed(stored) {
            true if mapped => 0,
            true => stored.bytes,
            false => stored.elements() as u64 * element,
        });
        Some(bytes.sum())
    }

    /// Returns whether the weights are mapped into memory. A CPU reads them there if the model has
    /// the stored type, and the system loads and drops their pages as it needs memory.
    pub fn is_mapped(&self) -> bool {
        self.manifest.is_some()
    }

    /// Reads a tensor onto `device` as `dtype`.
    ///
    /// # Errors
    /// If there is no such tensor, its shape is not `shape`, its stored type is not supported, a
    /// weight is not finite or exceeds the range of `dtype`, the device does not compute in
    /// `dtype`, or the file cannot be read.
    pub fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Tensor<D>, CheckpointError> {
        check_device(device, dtype)?;
        let data = self.read(name, &shape, Request::new(dtype, &|_| ()))?;
        Ok(place(data, dtype, device))
    }

    /// Reads the tensor `name` of the shape `shape` into host memory.
    pub(super) fn read(
        &self,
        name: &str,
        shape: &[usize],
        request: Request<'_>,
    ) -> Result<TensorData, CheckpointError> {
        let Some(tracked) = self.tensors.get(name) else {
            let file = match &*self.sources {
                [only] => only.path(),
                _ => &self.path,
            };
            return Err(CheckpointError::MissingTensor {
                path: file.into(),
                tensor: self.stored_name(name),
                expected: shape.into(),
            });
        };
        let source = &self.sources[tracked.source];
        if tracked.stored.shape != shape {
            return Err(CheckpointError::Shape {
                path: source.path().into(),
                tensor: self.stored_name(name),
                expected: shape.into(),
                found: tracked.stored.shape.clone(),
            });
        }
        self.verify_tensor(tracked, name)?;
        let data = decode::read(source, &tracked.stored, name, request)?;
        self.ignore(name);
        Ok(data)
    }

    /// Reads rows of the shape `shape` of a larger tensor into host memory.
    pub(super) fn read_part(
        &self,
        part: &Part,
        shape: &[usize],
        request: Request<'_>,
    ) -> Result<TensorData, CheckpointError> {
        let tracked = self.tensors.get(&part.whole);
        let Some(tracked) = tracked else {
            return self.read(&part.whole, shape, request);
        };
        let (source, stored) = (&self.sources[tracked.source], &tracked.stored);
        let rows = stored.rows(part.rows.clone());
        let Some(rows) = rows.filter(|rows| rows.shape == shape) else {
            let mut expected = shape.to_vec();
            expected[0] = part.rows.end;
            return Err(CheckpointError::Shape {
                path: source.path().into(),
                tensor: part.whole.clone(),
                expected,
                found: stored.shape.clone(),
            });
        };
        packed::verify(source, stored, &part.whole)?;
        let data = decode::read(source, &rows, &part.name, request)?;
        self.ignore(&part.whole);
        Ok(data)
    }

    /// Returns the name of a tensor in the file, for messages.
    fn stored_name(&self, name: &str) -> String {
        let own = match self.origin {
            Origin::Gguf { .. } => gguf::in_llama_cpp(name),
            _ => None,
        };
        own.unwrap_or_else(|| name.into())
    }

    /// Returns an error about the configuration of a GGUF file with the key of that file.
    pub(crate) fn name_key(&self, error: ConfigError) -> ConfigError {
        match (error, self.origin) {
            (
                ConfigError::Entry {
                    path,
                    key,
                    expected,
                    found,
                },
                Origin::Gguf { family },
            ) => ConfigError::Entry {
                path,
                key: gguf::key_of(&key, family).unwrap_or(key),
                expected,
                found,
            },
            (error, _) => error,
        }
    }

    /// Checks a tensor against its checksum, if it has one.
    pub(super) fn verify_tensor(
        &self,
        tracked: &Tracked,
        name: &str,
    ) -> Result<(), CheckpointError> {
        packed::verify(&self.sources[tracked.source], &tracked.stored, name)
    }

    /// Marks a tensor as used without reading it: the model knows it and does not need it.
    pub fn ignore(&self, name: &str) {
        if let Some(tracked) = self.tensors.get(name) {
            tracked.used.store(true, Ordering::Relaxed);
        }
    }

    /// Returns the names of the tensors that were neither read nor [ignored](Self::ignore), sorted.
    pub fn unused(&self) -> impl Iterator<Item = &str> {
        let unused = |tracked: &Tracked| !tracked.used.load(Ordering::Relaxed);
        let tensors = self.tensors.iter();
        tensors.filter_map(move |(name, tracked)| unused(tracked).then_some(name.as_str()))
    }
}

/// Refuses a type that the device stores but does not compute in. Otherwise the first operation of
/// the model would fail.
pub(crate) fn check_device(device: &Device, dtype: FloatDType) -> Result<(), CheckpointError> {
    match device.supports_dtype(dtype) {
        true => Ok(()),
        false => Err(CheckpointError::DeviceType {
            device: format!("{device:?}"),
            dtype,
        }),
    }
}
