//! Files of lines, as they are written or packed with gzip.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

/// What a file of gzip begins with (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The text of a file without a last line that its writer has not finished.
///
/// # Errors
/// When the file can't be read, is packed but damaged, or is no text.
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
    fn a_packed_file_reads_as_the_plain_one_and_a_damaged_one_is_refused() {
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
