//! [`LogitsWriter`]: writes logits to a safetensors file.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;

use sparq_output::files::OutputFile;

/// A file with one tensor `logits` [B, T, vocab] in F32, written in pieces.
///
/// The whole tensor is never in memory. It can be many times larger than the activations of the
/// model: a vocabulary of 128k and 4k tokens make 2 GiB.
pub struct LogitsWriter<'a> {
    file: OutputFile,
    path: &'a Path,
    shape: [usize; 3],
    /// The offset of the data in the file.
    data: u64,
}

impl<'a> LogitsWriter<'a> {
    /// Creates the file.
    pub fn create(path: &'a Path, shape: [usize; 3]) -> Result<Self> {
        let mut file = OutputFile::create(path)?;
        let bytes = shape.iter().product::<usize>() * size_of::<f32>();
        let mut header =
            json!({ "logits": { "dtype": "F32", "shape": shape, "data_offsets": [0, bytes] } })
                .to_string();
        // The format aligns the data to 8 bytes and pads the header with spaces.
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        let length = (header.len() as u64).to_le_bytes();
        let written = file
            .writer()
            .write_all(&length)
            .and_then(|()| file.writer().write_all(header.as_bytes()));
        written.with_context(|| format!("{}: cannot be written", path.display()))?;
        Ok(Self {
            file,
            path,
            shape,
            data: (length.len() + header.len()) as u64,
        })
    }

    /// Writes the logits of the positions `from..from + n`, [B, n, vocab].
    ///
    /// # Errors
    /// If the file cannot be written or a logit is not finite, which only broken weights or
    /// activations beyond the range of the type cause.
    pub fn write(&mut self, from: usize, logits: &[f32]) -> Result<()> {
        let [batch, len, vocab] = self.shape;
        let count = logits.len() / (batch * vocab);
        if let Some(index) = logits.iter().position(|logit| !logit.is_finite()) {
            let (sequence, position, token) = (
                index / (count * vocab),
                from + index / vocab % count,
                index % vocab,
            );
            bail!(
                "logits[{sequence}, {position}, {token}]: expected a finite number, found {}; \
                 the weights are broken or --dtype is too narrow for them",
                logits[index]
            );
        }
        for (sequence, logits) in logits.chunks(count * vocab).enumerate() {
            let offset = self.data + ((sequence * len + from) * vocab * size_of::<f32>()) as u64;
            let bytes: Vec<u8> = logits
                .iter()
                .flat_map(|logit| logit.to_le_bytes())
                .collect();
            let file = self.file.writer();
            let written = file
                .seek(SeekFrom::Start(offset))
                .and_then(|_| file.write_all(&bytes));
            written.with_context(|| format!("{}: cannot be written", self.path.display()))?;
        }
        Ok(())
    }

    /// Gives the file its name.
    pub fn finish(self) -> Result<()> {
        Ok(self.file.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn pieces_of_a_batch_land_in_their_sequences() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logits.safetensors");
        let mut writer = LogitsWriter::create(&path, [2, 3, 2]).unwrap();
        writer
            .write(0, &[0.0, 1.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0])
            .unwrap();
        assert!(!path.exists());
        writer.write(2, &[4.0, 5.0, 10.0, 11.0]).unwrap();
        writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor("logits").unwrap();
        let values: Vec<f32> = tensor
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect();
        assert_eq!(
            (tensor.shape(), values),
            (
                &[2, 3, 2][..],
                (0..12).map(|i| i as f32).collect::<Vec<f32>>()
            )
        );
    }

    #[test]
    fn nan_is_located_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logits.safetensors");
        let mut writer = LogitsWriter::create(&path, [2, 3, 2]).unwrap();
        let error = writer
            .write(1, &[0.0, 1.0, 2.0, 3.0, 6.0, f32::NAN, 8.0, 9.0])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("logits[1, 1, 1]: expected a finite number, found NaN"),
            "{error}"
        );
        drop(writer);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
