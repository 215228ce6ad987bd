//! The manifest of a converted model, `sparq.json`: [`Manifest`].

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use sparq::SparqConfig;

use super::super::{CheckpointError, describe, json::read_json};
use super::write::write_file;
use crate::LayerSharing;

/// The file that marks a folder as a converted model.
pub(crate) const MANIFEST: &str = "sparq.json";

/// The version of the format.
const FORMAT: u64 = 1;

/// The description of a converted model: settings and checksums.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u64,
    /// The recommended settings of SparQ.
    pub attention: Option<SparqConfig>,
    /// The measurement that the settings are based on, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// The measurement of layers that share positions, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<LayerSharing>,
    pub(super) files: BTreeMap<String, FileSum>,
    pub(super) tensors: BTreeMap<String, TensorSum>,
}

/// The measurement that settings are based on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The number of tokens of the text.
    pub tokens: usize,
    /// The number of tokens at which attention was measured: the last ones.
    pub steps: usize,
    /// The requested share of the attention probability to keep.
    pub asked: f64,
    /// The share that the settings kept, averaged over layers and heads.
    pub kept: f64,
}

/// Length and checksum of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileSum {
    pub(super) bytes: u64,
    pub(super) crc32: u32,
}

/// Checksum, order and format of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TensorSum {
    pub(super) transposed: bool,
    pub(super) crc32: u32,
    /// The format of the blocks of ggml that the bytes are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) blocks: Option<String>,
}

impl FileSum {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            crc32: crc32fast::hash(bytes),
        }
    }
}

impl Manifest {
    pub(super) fn new(
        attention: Option<SparqConfig>,
        files: BTreeMap<String, FileSum>,
        tensors: BTreeMap<String, TensorSum>,
    ) -> Self {
        Self {
            format: FORMAT,
            attention,
            calibration: None,
            sharing: None,
            files,
            tensors,
        }
    }

    /// Reads the manifest of a folder.
    pub(super) fn read(folder: &Path) -> Result<Self, CheckpointError> {
        Self::read_file(&folder.join(MANIFEST))
    }

    /// Reads the manifest of a converted model alone, for its settings and measurements.
    ///
    /// # Errors
    /// If the file cannot be read, or is no manifest of this format.
    pub fn read_file(path: &Path) -> Result<Self, CheckpointError> {
        let value = read_json(path)?;
        let error = |what: &str, expected: String, found: String| CheckpointError::Packed {
            path: path.into(),
            what: what.into(),
            expected,
            found,
        };
        // Checked first: the rest may differ in another version.
        match value.get("format") {
            Some(format) if format.as_u64() == Some(FORMAT) => {}
            other => {
                let found = other.map_or("nothing".into(), describe);
                return Err(error("\"format\"", FORMAT.to_string(), found));
            }
        }
        serde_json::from_value(value).map_err(|reason| {
            error(
                "the manifest",
                "one of this format".into(),
                reason.to_string(),
            )
        })
    }

    /// Replaces the manifest of a folder by one with measured settings and shared layers.
    ///
    /// # Errors
    /// If there is no manifest, or it cannot be written.
    pub fn set_attention(
        folder: &Path,
        attention: SparqConfig,
        calibration: Calibration,
        sharing: LayerSharing,
    ) -> Result<(), CheckpointError> {
        let mut manifest = Self::read(folder)?;
        manifest.attention = Some(attention);
        manifest.calibration = Some(calibration);
        manifest.sharing = Some(sharing);
        let (part, path) = (folder.join(".sparq.json.part"), folder.join(MANIFEST));
        manifest.write(&part)?;
        std::fs::rename(&part, &path).map_err(CheckpointError::write(&path))
    }

    /// Writes the manifest to a new file.
    pub(super) fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let mut text = Vec::new();
        let written = self.serialize(&mut Serializer::with_formatter(
            &mut text,
            ShortArrays::default(),
        ));
        written.map_err(|error| CheckpointError::write(path)(error.into()))?;
        text.push(b'\n');
        write_file(path, &text)
    }
}

/// Writes objects over several lines, arrays in a line for each of their elements, and arrays
/// inside of arrays in one line. A large array then stays short and can be read.
#[derive(Default)]
struct ShortArrays {
    objects: PrettyFormatter<'static>,
    /// The number of arrays around the current value.
    arrays: usize,
}

impl Formatter for ShortArrays {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.arrays += 1;
        writer.write_all(b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.arrays -= 1;
        writer.write_all(b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        let separator: &[u8] = match (first, self.arrays) {
            (true, 1) => b"\n",
            (true, _) => b"",
            (false, 1) => b",\n",
            (false, _) => b",",
        };
        writer.write_all(separator)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.objects.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.objects.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.objects.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.objects.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.objects.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_are_refused_first() {
        let folder = std::env::temp_dir().join(format!("sparq-manifest-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let read = |text: &str| {
            std::fs::write(folder.join(MANIFEST), text).unwrap();
            Manifest::read(&folder).unwrap_err().to_string()
        };
        let newer = read(r#"{"format": 2, "tensors": []}"#);
        assert!(newer.contains("\"format\": expected 1, found 2"), "{newer}");
        let other = read(r#"{"format": 1, "files": {}, "tensors": {}, "more": 1}"#);
        assert!(other.contains("unknown field `more`"), "{other}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
