//! Files of lines, plain or compressed with gzip.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

/// The first bytes of a gzip file (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Returns the text of a file without an unfinished last line.
///
/// # Errors
/// If the file cannot be read, is compressed but damaged, or is not UTF-8.
pub(crate) fn whole_lines(path: &Path) -> io::Result<String> {
    let mut bytes = fs::read(path)?;
    if bytes.starts_with(&GZIP) {
        let mut text = Vec::new();
        MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut text)?;
        bytes = text;
    }
    let whole = bytes.iter().rposition(|&byte| byte == b'\n');
    bytes.truncate(whole.map_or(0, |end| end + 1));
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn gzip_files_read_like_plain_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        fs::write(&path, "one\ntwo\nunfini").unwrap();
        assert_eq!(whole_lines(&path).unwrap(), "one\ntwo\n");

        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(b"one\ntwo\nunfini").unwrap();
        let packed = packed.finish().unwrap();
        fs::write(&path, &packed).unwrap();
        assert_eq!(whole_lines(&path).unwrap(), "one\ntwo\n");

        for end in 2..packed.len() {
            fs::write(&path, &packed[..end]).unwrap();
            assert!(whole_lines(&path).is_err(), "{end} of {}", packed.len());
        }
        fs::write(&path, b"\xff\xfe\n").unwrap();
        assert_eq!(
            whole_lines(&path).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
