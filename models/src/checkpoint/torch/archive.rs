//! The zip archive that holds the pickle and the storages: [`Archive`].

use std::{collections::BTreeMap, io};

use rawzip::{
    CompressionMethod, RECOMMENDED_BUFFER_SIZE, ReaderAt, ZipArchive, ZipFileHeaderRecord,
};

use super::super::{CheckpointError, source::Source};
use super::error;

/// The file with the names of the tensors, in the folder of the archive.
const PICKLE: &str = "data.pkl";

/// The bytes at the end of the archive that are searched for its directory: more than its last
/// record with the longest comment.
const SEARCHED: u64 = 1 << 17;

/// The most files in an archive. Real ones have one for each storage, and a few more.
const MAX_ENTRIES: usize = 100_000;

/// The most bytes in the path of a file.
const MAX_NAME: usize = 512;

/// The most bytes in a pickle. A tensor takes about 150.
const MAX_PICKLE: u64 = 1 << 24;

/// The files of an archive. `torch.save` does not compress them, so each is a range of the archive.
pub(super) struct Archive<'a> {
    source: &'a Source,
    entries: BTreeMap<String, Entry>,
    /// The folder of all files, with the name of the model or `archive`.
    folder: String,
}

/// The range of a file's bytes.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) bytes: u64,
}

impl<'a> Archive<'a> {
    /// Reads the directory of the archive `source`, and checks it against the length of the file.
    pub(super) fn open(source: &'a Source) -> Result<Self, CheckpointError> {
        check_beginning(source)?;
        let entries = entries(source)?;
        let folder = folder_of(source, &entries)?;
        let archive = Self {
            source,
            entries,
            folder,
        };
        archive.check_byte_order()?;
        Ok(archive)
    }

    pub(super) fn source(&self) -> &'a Source {
        self.source
    }

    /// Returns the range of the file `name`, if there is one.
    pub(super) fn entry(&self, name: &str) -> Option<Entry> {
        self.entries
            .get(&format!("{}/{name}", self.folder))
            .copied()
    }

    /// Reads the pickle.
    pub(super) fn pickle(&self) -> Result<Vec<u8>, CheckpointError> {
        self.small(PICKLE, MAX_PICKLE)
            .map(Option::unwrap_or_default)
    }

    fn check_byte_order(&self) -> Result<(), CheckpointError> {
        const NAME: &str = "byteorder";
        match self.small(NAME, 16)? {
            Some(order) if order != b"little" => {
                let found = format!("\"{}\"", order.escape_ascii());
                Err(error(self.source, NAME, "\"little\"", found))
            }
            _ => Ok(()),
        }
    }

    /// Reads the file `name`, if there is one. Refuses more than `limit` bytes.
    fn small(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, CheckpointError> {
        let Some(Entry { start, bytes }) = self.entry(name) else {
            return Ok(None);
        };
        if bytes > limit {
            let expected = format!("at most {limit} bytes");
            return Err(error(self.source, name, expected, bytes.to_string()));
        }
        let mut content = vec![0; bytes as usize];
        self.source.read_at(start, &mut content)?;
        Ok(Some(content))
    }
}

/// Returns all files of an archive by their paths.
fn entries(source: &Source) -> Result<BTreeMap<String, Entry>, CheckpointError> {
    let damaged = |fault: rawzip::Error| {
        let expected = "a complete zip archive";
        error(source, "the archive", expected, fault.to_string())
    };
    let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
    let archive = ZipArchive::with_max_search_space(SEARCHED)
        .locate_in_reader(At(source), &mut buffer, source.len())
        .map_err(|(_, fault)| damaged(fault))?;
    let mut entries = BTreeMap::new();
    // Refuses overlapping files: together they would have more bytes than the archive.
    let mut unclaimed = source.len();
    let mut records = archive.entries(&mut buffer);
    while let Some(record) = records.next_entry().map_err(damaged)? {
        if entries.len() == MAX_ENTRIES {
            let expected = format!("at most {MAX_ENTRIES} files");
            return Err(error(source, "the archive", expected, "more"));
        }
        let name = checked_name(source, &record)?;
        let place = archive.get_entry(record.wayfinder()).map_err(damaged)?;
        let (start, end) = place.compressed_data_range();
        let bytes = end.checked_sub(start).filter(|_| end <= source.len());
        let left = bytes.and_then(|bytes| unclaimed.checked_sub(bytes));
        let what = format!("\"{name}\" in the archive");
        let (Some(bytes), Some(left)) = (bytes, left) else {
            let expected = format!("files of at most {} bytes together", source.len());
            let found = format!("bytes {start} to {end}");
            return Err(error(source, &what, expected, found));
        };
        unclaimed = left;
        if entries.insert(name, Entry { start, bytes }).is_some() {
            return Err(error(source, &what, "one file of that name", "two"));
        }
    }
    Ok(entries)
}

/// Returns the path of a file, which has to be neither compressed nor encrypted.
fn checked_name(
    source: &Source,
    record: &ZipFileHeaderRecord<'_>,
) -> Result<String, CheckpointError> {
    let name = record.file_path();
    let name = name.as_bytes();
    let text = str::from_utf8(name).ok().filter(|_| name.len() <= MAX_NAME);
    let text = text.ok_or_else(|| {
        let expected = format!("names in UTF-8 of at most {MAX_NAME} bytes");
        error(source, "the archive", expected, "another name")
    })?;
    if record.compression_method() != CompressionMethod::STORE
        || record.flags().is_encrypted()
        || record.compressed_size_hint() != record.uncompressed_size_hint()
    {
        let what = format!("\"{text}\" in the archive");
        let expected = "a file that is neither compressed nor encrypted";
        return Err(error(source, &what, expected, "one that is"));
    }
    Ok(text.to_owned())
}

/// Returns the one folder with a pickle.
fn folder_of(
    source: &Source,
    entries: &BTreeMap<String, Entry>,
) -> Result<String, CheckpointError> {
    let folders = entries
        .keys()
        .filter_map(|name| name.strip_suffix(PICKLE)?.strip_suffix('/'));
    let folders: Vec<_> = folders.filter(|folder| !folder.contains('/')).collect();
    match *folders {
        [folder] => Ok(folder.to_owned()),
        _ => {
            let expected = format!("one folder with {PICKLE}, as torch.save writes it");
            Err(error(
                source,
                "the archive",
                expected,
                folders.len().to_string(),
            ))
        }
    }
}

/// Refuses files that are no zip archive. Names the remedy for known other files.
fn check_beginning(source: &Source) -> Result<(), CheckpointError> {
    const ZIP: &[u8] = b"PK\x03\x04";
    const STREAM: &[u8] = b"\x80";
    let mut beginning = [0; ZIP.len()];
    let length = source.len().min(beginning.len() as u64) as usize;
    source.read_at(0, &mut beginning[..length])?;
    let beginning = &beginning[..length];
    if beginning.starts_with(ZIP) {
        return Ok(());
    }
    let found = if beginning.starts_with(STREAM) {
        "the format of PyTorch before 1.6; load the file with torch.load and write it with \
         torch.save, or as safetensors"
            .into()
    } else {
        format!("\"{}\"", beginning.escape_ascii())
    };
    Err(error(source, "the beginning", "a zip archive", found))
}

/// Adapts a source to the reader of archives.
struct At<'a>(&'a Source);

impl ReaderAt for At<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.0.len().saturating_sub(offset);
        let count = left.min(buffer.len() as u64) as usize;
        self.0.try_read_at(offset, &mut buffer[..count])?;
        Ok(count)
    }
}
