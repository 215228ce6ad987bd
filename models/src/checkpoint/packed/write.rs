//! Writes a checkpoint in another form: [`Conversion`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use burn::tensor::{Bytes, Device, FloatDType};
use burn_pack::{Tensor, Writer};
use safetensors::tensor::{Metadata, TensorInfo};
use sparq::SparqConfig;
use sparq::ops::BlockFormat;

use super::super::{
    Checkpoint, CheckpointError,
    decode::{Request, Stored},
    formats::StoredType,
    threads,
};
use super::{
    MANIFEST, WEIGHTS, checksum, files,
    manifest::{FileSum, Manifest, TensorSum},
    quant,
};

/// The name of Hugging Face's file of weights.
const SAFETENSORS: &str = "model.safetensors";

/// The metadata that transformers require in its header.
const METADATA: (&str, &str) = ("format", "pt");

/// Writes a checkpoint as a converted model, or as safetensors.
///
/// Tensors are read, converted and written one after the other: memory peaks at the largest tensor.
/// Weights that are not finite, or exceed the range of the type, are refused.
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
    dtype: Option<StoredType>,
    attention: Option<SparqConfig>,
    left_out: BTreeSet<String>,
    on_bytes: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Conversion {
    /// Creates a conversion that keeps the type of every float tensor, and blocks of a GGUF file in
    /// a converted model. Other quantised tensors become F32.
    pub fn new(checkpoint: Arc<Checkpoint>) -> Self {
        Self {
            checkpoint,
            dtype: None,
            attention: None,
            left_out: BTreeSet::new(),
            on_bytes: Arc::new(|_| ()),
        }
    }

    /// Sets the type to write, one of [`StoredType::written`]; `None` keeps the types.
    ///
    /// The quantised types are for matrices whose rows are whole blocks; other tensors keep their
    /// type. Rows that are not whole blocks of 256 get blocks of 32 with a bit more. Types of 4 and
    /// 5 bits are for the matrices of linear layers: embedding tables get [`StoredType::Q8`], or
    /// [`StoredType::Q6_K`] or [`StoredType::Q8_0`].
    #[must_use]
    pub fn with_dtype(mut self, dtype: Option<StoredType>) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets the settings of SparQ that the converted model recommends.
    #[must_use]
    pub fn with_attention(mut self, attention: Option<SparqConfig>) -> Self {
        self.attention = attention;
        self
    }

    /// Sets the tensors to leave out, such as masks and other constants that a model does not read.
    #[must_use]
    pub fn without(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.left_out = names.into_iter().collect();
        self
    }

    /// Sets a callback that receives the number of bytes of each chunk read.
    #[must_use]
    pub fn with_progress(mut self, on_bytes: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.on_bytes = Arc::new(on_bytes);
        self
    }

    /// Writes a converted model into the empty folder `folder`, its manifest last.
    ///
    /// # Errors
    /// If a tensor cannot be read, or its type cannot be read or written, or a file cannot be
    /// written.
    pub fn write(&self, folder: &Path) -> Result<Manifest, CheckpointError> {
        let plans = self.plan(true)?;
        let path = folder.join(WEIGHTS);
        let sums = Arc::new(Mutex::new(BTreeMap::new()));
        // burnpack's errors hold texts only. This keeps the one that names tensor and file.
        let failed = Arc::new(Mutex::new(None));
        let mut tensors = Vec::new();
        for plan in plans {
            let Some(burn_type) = plan.dtype.burn_type() else {
                return Err(self.refused(&plan.name, plan.dtype));
            };
            let (checkpoint, on_bytes) = (self.checkpoint.clone(), self.on_bytes.clone());
            let (sums, failed) = (sums.clone(), failed.clone());
            let (name, length) = (plan.name.clone(), plan.bytes());
            let shape = plan.shape_in_file();
            let bytes = move || {
                let bytes = plan.read(&checkpoint, &*on_bytes);
                let bytes = bytes.map_err(|error| {
                    let message = error.to_string();
                    *lock(&failed) = Some(error);
                    burn_pack::Error::IoError(message)
                })?;
                let sum = TensorSum {
                    transposed: false,
                    crc32: checksum(plan.dtype, false, &plan.shape, &bytes),
                    blocks: plan.dtype.packed().map(|format| format.name().into()),
                };
                lock(&sums).insert(plan.name.clone(), sum);
                Ok(bytes)
            };
            tensors.push(Tensor::deferred(
                name, burn_type, shape, None, length, bytes,
            ));
        }
        let written = Writer::new(tensors)
            .overwrite(false)
            .write_to_file_in_place(&path);
        if let Some(error) = lock(&failed).take() {
            return Err(error);
        }
        let written = written.map_err(|error| io::Error::other(error.to_string()));
        written.map_err(CheckpointError::write(&path))?;
        sync(&path)?;

        let sums = std::mem::take(&mut *lock(&sums));
        let mut manifest = Manifest::new(self.attention, self.write_files(folder)?, sums);
        manifest.sharing = self.checkpoint.sharing().cloned();
        manifest.write(&folder.join(MANIFEST))?;
        Ok(manifest)
    }

    /// Writes a checkpoint with one safetensors file into the empty folder `folder`, its
    /// `config.json` last.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_safetensors(&self, folder: &Path) -> Result<(), CheckpointError> {
        let plans = self.plan(false)?;
        let path = folder.join(SAFETENSORS);
        let failed = CheckpointError::write(&path);
        let mut end = 0;
        let mut infos = Vec::new();
        for plan in &plans {
            let Some((_, dtype)) = plan.dtype.float() else {
                return Err(self.refused(&plan.name, plan.dtype));
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
        let about = HashMap::from([(METADATA.0.to_owned(), METADATA.1.to_owned())]);
        let header = Metadata::new(Some(about), infos)
            .map_err(|error| failed(io::Error::other(error.to_string())))?;
        let mut header = serde_json::to_vec(&header).map_err(|error| failed(error.into()))?;
        header.resize(header.len().next_multiple_of(8), b' ');

        let mut file = BufWriter::new(File::create_new(&path).map_err(&failed)?);
        file.write_all(&(header.len() as u64).to_le_bytes())
            .map_err(&failed)?;
        file.write_all(&header).map_err(&failed)?;
        for plan in &plans {
            let bytes = plan.read(&self.checkpoint, &*self.on_bytes)?;
            file.write_all(&bytes).map_err(&failed)?;
        }
        file.flush().map_err(&failed)?;
        drop(file);
        sync(&path)?;
        self.write_files(folder)?;
        Ok(())
    }

    /// Decides for each tensor how it is written. `packed`: blocks of ggml can be.
    fn plan(&self, packed: bool) -> Result<Vec<Plan>, CheckpointError> {
        let plan = |name: &str| {
            let stored = &self.checkpoint.tensors[name].stored;
            if stored.dtype.format().is_none() {
                return Err(self.refused(name, stored.dtype));
            }
            let dtype = self.stored_type(name, stored, packed);
            Ok(Plan {
                name: name.into(),
                shape: stored.shape.clone(),
                dtype,
            })
        };
        let names = self.checkpoint.names();
        names
            .filter(|name| !self.left_out.contains(*name))
            .map(plan)
            .collect()
    }

    /// Returns the type that a tensor is written in.
    fn stored_type(&self, name: &str, stored: &Stored, packed: bool) -> StoredType {
        let is_matrix = stored.shape.len() == 2;
        let kept = match stored.dtype.is_quantized() {
            true if packed && is_matrix && stored.dtype.packed().is_some() => stored.dtype,
            true => StoredType::F32,
            false => stored.dtype,
        };
        let wanted = self.dtype.unwrap_or(kept);
        if !wanted.is_quantized() || wanted == kept {
            return wanted;
        }
        if !is_matrix {
            return kept;
        }
        let is_linear = is_linear(name, &stored.shape);
        let wanted = match (wanted.quantized(), wanted.packed()) {
            (Some(quantized), _) if !is_linear => quantized.for_embeddings,
            (_, Some(format)) => StoredType::from_packed(fitting(format, is_linear, &stored.shape)),
            _ => wanted,
        };
        match wanted.bytes(&stored.shape) {
            Some(_) => wanted,
            None => kept,
        }
    }

    /// Returns the error for a type that cannot be read or written.
    fn refused(&self, tensor: &str, found: StoredType) -> CheckpointError {
        let entry = self.checkpoint.entry(tensor);
        let path = entry.map_or(&*self.checkpoint.path, |entry| entry.file);
        CheckpointError::StoredType {
            path: path.into(),
            tensor: tensor.into(),
            found,
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
                fs::create_dir_all(parent).map_err(CheckpointError::write(parent))?;
            }
            write_file(&path, &bytes)?;
            sums.insert(name, FileSum::of(&bytes));
        }
        Ok(sums)
    }
}

/// How one tensor is written.
struct Plan {
    name: String,
    shape: Vec<usize>,
    dtype: StoredType,
}

impl Plan {
    fn bytes(&self) -> usize {
        self.dtype.bytes(&self.shape).unwrap_or(0)
    }

    /// Returns the shape of the tensor in burnpack, in which blocks of ggml are rows of bytes.
    fn shape_in_file(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let (Some(format), Some(columns)) = (self.dtype.packed(), shape.last_mut()) {
            *columns = format.row_bytes(*columns);
        }
        shape
    }

    /// Reads the tensor and returns its bytes as they are written.
    fn read(
        &self,
        checkpoint: &Checkpoint,
        on_bytes: &(dyn Fn(u64) + Sync),
    ) -> Result<Bytes, CheckpointError> {
        let float = self.dtype.float();
        let dtype = float.map_or(FloatDType::F32, |(dtype, _)| dtype);
        let request = Request::new(dtype, on_bytes);
        if let (Some(format), &[rows, columns]) = (self.dtype.packed(), &*self.shape) {
            let entry = checkpoint.entry(&self.name);
            if entry.is_some_and(|entry| entry.dtype == self.dtype)
                && let Some((_, bytes)) =
                    checkpoint.blocks((&self.name, None), [rows, columns], true, request)?
            {
                return Ok(bytes);
            }
            let data = checkpoint.read(&self.name, &self.shape, request)?;
            return Ok(blocks_of(
                format,
                columns,
                data.as_slice().unwrap_or_default(),
            ));
        }
        let data = checkpoint.read(&self.name, &self.shape, request)?;
        if !self.dtype.is_quantized() {
            return Ok(data.into_bytes());
        }
        let bytes = quant::quantize(data, self.dtype, &Device::default());
        bytes
            .map(Bytes::from_bytes_vec)
            .ok_or_else(|| CheckpointError::DeviceType {
                device: format!("{:?}", Device::default()),
                dtype,
            })
    }
}

/// Returns the format for a matrix, `wanted` or the next larger one that fits: rows are whole
/// blocks, and embedding tables keep 6 bits.
fn fitting(wanted: BlockFormat, is_linear: bool, shape: &[usize]) -> BlockFormat {
    let wanted = match (is_linear, wanted) {
        (true, _) | (false, BlockFormat::Q8_0) => wanted,
        (false, _) => BlockFormat::Q6_K,
    };
    let columns = shape.last().copied().unwrap_or(1);
    match wanted {
        _ if columns.is_multiple_of(wanted.weights()) => wanted,
        BlockFormat::Q4_K => BlockFormat::Q5_0,
        BlockFormat::Q5_K => BlockFormat::Q5_1,
        BlockFormat::Q6_K => BlockFormat::Q8_0,
        _ => wanted,
    }
}

/// Returns the blocks of a matrix with rows of `columns` weights, made by all threads.
fn blocks_of(format: BlockFormat, columns: usize, weights: &[f32]) -> Bytes {
    const ROWS: usize = 16;
    let mut bytes = vec![0; format.row_bytes(weights.len())];
    let rows = (ROWS * columns).max(1);
    let work = weights
        .chunks(rows)
        .zip(bytes.chunks_mut(format.row_bytes(rows).max(1)));
    // A weight takes far longer than reading its bytes.
    threads::run(threads::for_bytes(16 * weights.len()), work, |work| {
        work.for_each(|(weights, to)| to.copy_from_slice(&format.quantize(weights)));
    });
    Bytes::from_bytes_vec(bytes)
}

/// Returns whether a tensor is the matrix of a linear layer.
fn is_linear(name: &str, shape: &[usize]) -> bool {
    shape.len() == 2 && name.ends_with(".weight") && !name.contains("embed")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(CheckpointError::write(path))
}

/// Waits until a written file is on the disk.
fn sync(path: &Path) -> Result<(), CheckpointError> {
    let file = File::options().write(true).open(path);
    let synced = file.and_then(|file| file.sync_all());
    synced.map_err(CheckpointError::write(path))
}
