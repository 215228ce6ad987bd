//! Writing a checkpoint in another form: [`Conversion`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use burn::tensor::{Bytes, Device, FloatDType};
use burn_pack::{Tensor, Writer};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use sparq::SparqConfig;

use super::super::{
    Checkpoint, CheckpointError,
    decode::{Order, Stored},
    stored_type::StoredType,
};
use super::{
    MANIFEST, WEIGHTS, burn_type, checksum, files,
    manifest::{FileSum, Manifest, TensorSum},
    quant::{self, BLOCK},
};

/// How the files with weights of Hugging Face are called, and their headers say who can read them.
const SAFETENSORS: &str = "model.safetensors";
const MADE_FOR: (&str, &str) = ("format", "pt");

/// The types that weights are converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE.
    F16,
    /// The upper 16 bits of an F32.
    BF16,
    /// 8 bits and a scale for each block of 32, for matrices whose rows are whole blocks; other tensors keep their type.
    Q8,
    /// 4 bits and a scale for each block of 32, for matrices of linear layers whose rows are whole blocks; embedding tables get 8 bits, and other tensors
    /// keep their type.
    Q4,
}

/// What is written of a checkpoint: a converted model, or a checkpoint in safetensors again.
///
/// Tensors are read, converted and written one after the other, so that the largest is what has to be in memory. Weights that are not finite, or do not fit
/// the type, are refused.
///
/// ```
/// use std::sync::Arc;
/// use sparq_models::{checkpoint::{Checkpoint, Conversion}, embedded};
///
/// let folder = std::env::temp_dir().join(format!("sparq-doc-{}", std::process::id()));
/// std::fs::create_dir(&folder)?;
/// let original = Arc::new(embedded::checkpoint()?);
/// Conversion::new(original.clone()).write(&folder)?;
/// let converted = Checkpoint::open(&folder)?;
/// assert!(converted.names().eq(original.names()));
/// # drop(converted);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Conversion {
    checkpoint: Arc<Checkpoint>,
    dtype: Option<WeightType>,
    attention: Option<SparqConfig>,
    left_out: BTreeSet<String>,
    on_bytes: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Conversion {
    /// A conversion that keeps the type of every tensor; blocks of a GGUF file become the F32 that they stand for.
    pub fn new(checkpoint: Arc<Checkpoint>) -> Self {
        Self {
            checkpoint,
            dtype: None,
            attention: None,
            left_out: BTreeSet::new(),
            on_bytes: Arc::new(|_| ()),
        }
    }

    /// Sets the type of all tensors, as far as it is one for them; see [`WeightType`].
    #[must_use]
    pub fn with_dtype(mut self, dtype: Option<WeightType>) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets the settings of SparQ that a converted model is meant to be run with.
    #[must_use]
    pub fn with_attention(mut self, attention: Option<SparqConfig>) -> Self {
        self.attention = attention;
        self
    }

    /// Sets the tensors that are left out, as masks and other constants that a model does not read.
    #[must_use]
    pub fn without(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.left_out = names.into_iter().collect();
        self
    }

    /// Sets who hears how many bytes of the checkpoint have been read.
    #[must_use]
    pub fn with_progress(mut self, on_bytes: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.on_bytes = Arc::new(on_bytes);
        self
    }

    /// Writes a converted model into `folder`, which is there and empty; its manifest last.
    ///
    /// # Errors
    /// When a tensor can't be read as for a model, is of a type that is not read, or when a file can't be written.
    pub fn write(&self, folder: &Path) -> Result<Manifest, CheckpointError> {
        let plans = self.plan()?;
        let path = folder.join(WEIGHTS);
        let sums = Arc::new(Mutex::new(BTreeMap::new()));
        // burnpack's errors are texts: the one that names tensor and file goes by here.
        let failed = Arc::new(Mutex::new(None));
        let mut tensors = Vec::new();
        for plan in plans {
            let burn_type = burn_type(plan.dtype).ok_or_else(|| self.not_written(&plan))?;
            let (checkpoint, on_bytes) = (self.checkpoint.clone(), self.on_bytes.clone());
            let (sums, failed) = (sums.clone(), failed.clone());
            let (name, shape, length) = (plan.name.clone(), plan.shape_in_file(), plan.bytes());
            tensors.push(Tensor::deferred(
                name,
                burn_type,
                shape,
                None,
                length,
                move || {
                    let bytes = plan
                        .read(&checkpoint, plan.transposed, &*on_bytes)
                        .map_err(|error| {
                            let message = error.to_string();
                            *lock(&failed) = Some(error);
                            burn_pack::Error::IoError(message)
                        })?;
                    let sum = TensorSum {
                        transposed: plan.transposed,
                        crc32: checksum(plan.dtype, plan.transposed, &plan.shape, &bytes),
                    };
                    lock(&sums).insert(plan.name.clone(), sum);
                    Ok(bytes)
                },
            ));
        }
        let written = Writer::new(tensors)
            .overwrite(false)
            .write_to_file_in_place(&path);
        if let Some(error) = lock(&failed).take() {
            return Err(error);
        }
        written.map_err(|error| write_error(&path, io::Error::other(error.to_string())))?;
        sync(&path)?;

        let sums = std::mem::take(&mut *lock(&sums));
        let manifest = Manifest::new(self.attention, self.write_files(folder)?, sums);
        manifest.write(&folder.join(MANIFEST))?;
        Ok(manifest)
    }

    /// Writes a checkpoint in one safetensors file into `folder`, which is there and empty; its `config.json` last.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_safetensors(&self, folder: &Path) -> Result<(), CheckpointError> {
        let plans = self.plan()?;
        let path = folder.join(SAFETENSORS);
        let failed = |error| write_error(&path, error);
        let mut end = 0;
        let mut infos = Vec::new();
        for plan in &plans {
            let dtype = match plan.dtype {
                StoredType::F32 => Dtype::F32,
                StoredType::F16 => Dtype::F16,
                StoredType::BF16 => Dtype::BF16,
                _ => return Err(self.not_written(plan)),
            };
            let start = end;
            end += plan.bytes();
            let shape = plan.shape.clone();
            let info = TensorInfo {
                dtype,
                shape,
                data_offsets: (start, end),
            };
            infos.push((plan.name.clone(), info));
        }
        let about = HashMap::from([(MADE_FOR.0.to_owned(), MADE_FOR.1.to_owned())]);
        let header = Metadata::new(Some(about), infos)
            .map_err(|error| failed(io::Error::other(error.to_string())))?;
        let mut header = serde_json::to_vec(&header).map_err(|error| failed(error.into()))?;
        header.resize(header.len().next_multiple_of(8), b' ');

        let mut file = BufWriter::new(File::create_new(&path).map_err(failed)?);
        file.write_all(&(header.len() as u64).to_le_bytes())
            .map_err(failed)?;
        file.write_all(&header).map_err(failed)?;
        for plan in &plans {
            let bytes = plan.read(&self.checkpoint, false, &*self.on_bytes)?;
            file.write_all(&bytes).map_err(failed)?;
        }
        file.flush().map_err(failed)?;
        drop(file);
        sync(&path)?;
        self.write_files(folder)?;
        Ok(())
    }

    /// What becomes of each tensor.
    fn plan(&self) -> Result<Vec<Plan>, CheckpointError> {
        let plan = |name: &str| {
            let tracked = &self.checkpoint.tensors[name];
            let stored = &tracked.stored;
            let plan = Plan {
                name: name.into(),
                shape: stored.shape.clone(),
                dtype: self.stored_type(name, stored),
                transposed: is_linear(name, &stored.shape),
            };
            // Rows are what is in blocks, and nothing of it can be mapped to compute with.
            let plan = Plan {
                transposed: plan.transposed && !plan.dtype.is_quantized(),
                ..plan
            };
            match stored.dtype.block() {
                Some(_) => Ok(plan),
                None => Err(self.not_written(&Plan {
                    dtype: stored.dtype,
                    ..plan
                })),
            }
        };
        let names = self.checkpoint.names();
        names
            .filter(|name| !self.left_out.contains(*name))
            .map(plan)
            .collect()
    }

    /// The type that a tensor is written in.
    fn stored_type(&self, name: &str, stored: &Stored) -> StoredType {
        let kept = match stored.dtype.is_quantized() {
            true => StoredType::F32,
            false => stored.dtype,
        };
        let in_blocks = match &*stored.shape {
            [_, columns] => columns.is_multiple_of(BLOCK),
            _ => false,
        };
        match self.dtype {
            None => kept,
            Some(WeightType::F32) => StoredType::F32,
            Some(WeightType::F16) => StoredType::F16,
            Some(WeightType::BF16) => StoredType::BF16,
            Some(WeightType::Q8 | WeightType::Q4) if !in_blocks => kept,
            Some(WeightType::Q4) if is_linear(name, &stored.shape) => StoredType::Q4,
            Some(_) => StoredType::Q8,
        }
    }

    fn not_written(&self, plan: &Plan) -> CheckpointError {
        let entry = self.checkpoint.entry(&plan.name);
        CheckpointError::StoredType {
            path: entry
                .map_or(&*self.checkpoint.path, |entry| entry.file)
                .into(),
            tensor: plan.name.clone(),
            found: plan.dtype,
        }
    }

    /// Writes the small files, the configuration last.
    fn write_files(&self, folder: &Path) -> Result<BTreeMap<String, FileSum>, CheckpointError> {
        let mut sums = BTreeMap::new();
        let mut files = files::read(&self.checkpoint)?;
        files.reverse();
        for (name, bytes) in files {
            let path = folder.join(&name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|error| write_error(parent, error))?;
            }
            write_file(&path, &bytes)?;
            sums.insert(name, FileSum::of(&bytes));
        }
        Ok(sums)
    }
}

/// How one tensor is written.
#[derive(Clone)]
struct Plan {
    name: String,
    shape: Vec<usize>,
    dtype: StoredType,
    transposed: bool,
}

impl Plan {
    fn bytes(&self) -> usize {
        super::bytes(self.dtype, &self.shape).unwrap_or(0)
    }

    fn shape_in_file(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.transposed {
            shape.reverse();
        }
        shape
    }

    /// The bytes of the tensor as they are written.
    fn read(
        &self,
        checkpoint: &Checkpoint,
        transposed: bool,
        on_bytes: &dyn Fn(u64),
    ) -> Result<Bytes, CheckpointError> {
        let dtype = match self.dtype {
            StoredType::F16 => FloatDType::F16,
            StoredType::BF16 => FloatDType::BF16,
            _ => FloatDType::F32,
        };
        let order = match transposed {
            true => Order::Transposed,
            false => Order::AsStored,
        };
        let data = checkpoint.read_on_host(&self.name, &self.shape, dtype, order, on_bytes)?;
        if !self.dtype.is_quantized() {
            return Ok(data.into_bytes());
        }
        // Any device does: the arithmetic is burn's.
        let bytes = quant::quantize(data, self.dtype, &Device::default());
        bytes
            .map(Bytes::from_bytes_vec)
            .ok_or_else(|| CheckpointError::DeviceType {
                device: format!("{:?}", Device::default()),
                dtype,
            })
    }
}

/// Whether a tensor is the matrix of a linear layer, which is read transposed. A wrong guess costs a transposition when the model is loaded, no more.
fn is_linear(name: &str, shape: &[usize]) -> bool {
    shape.len() == 2 && name.ends_with(".weight") && !name.contains("embed")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write_error(path: &Path, error: io::Error) -> CheckpointError {
    CheckpointError::Write {
        path: path.into(),
        error,
    }
}

pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| write_error(path, error))
}

/// Waits until the disk has a file that was written.
fn sync(path: &Path) -> Result<(), CheckpointError> {
    let file = File::options().write(true).open(path);
    let synced = file.and_then(|file| file.sync_all());
    synced.map_err(|error| write_error(path, error))
}
