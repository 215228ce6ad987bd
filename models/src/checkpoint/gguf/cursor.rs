//! Reads the header of a GGUF file value by value: [`Cursor`].

use serde_json::{Number, Value};

use super::super::{CheckpointError, source::Source};

/// Bytes read at a time.
const BUFFER: u64 = 1 << 16;

/// The most bytes in a string of a header. Chat templates have up to about a hundred thousand.
const MAX_STRING: u64 = 1 << 24;

/// The most items in all lists of a header. The largest vocabularies have three lists of a quarter
/// of a million items.
const MAX_ITEMS: u64 = 1 << 22;

/// A position in the header. Every length is checked against the limits and the length of the file
/// before memory is allocated.
pub(super) struct Cursor<'a> {
    source: &'a Source,
    at: u64,
    /// Bytes of the file that were read ahead. The first `taken` of them lie before `at`.
    buffer: Vec<u8>,
    taken: usize,
    items_left: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self {
            source,
            at: 0,
            buffer: Vec::new(),
            taken: 0,
            items_left: MAX_ITEMS,
        }
    }

    /// Returns the number of bytes from the start of the file.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    pub(super) fn error(
        &self,
        what: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> CheckpointError {
        super::error(self.source.path(), what, expected, found)
    }

    /// Returns the next `count` bytes, which belong to `what`.
    fn take(&mut self, count: u64, what: &str) -> Result<&[u8], CheckpointError> {
        let left = self.source.len() - self.at;
        if count > left {
            return Err(self.error(
                what,
                format!("{count} bytes"),
                format!("the end of the file after {left}"),
            ));
        }
        if ((self.buffer.len() - self.taken) as u64) < count {
            self.buffer.resize(count.max(BUFFER.min(left)) as usize, 0);
            self.source.read_at(self.at, &mut self.buffer)?;
            self.taken = 0;
        }
        let start = self.taken;
        self.taken += count as usize;
        self.at += count;
        Ok(&self.buffer[start..self.taken])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], CheckpointError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, CheckpointError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, CheckpointError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub(super) fn string(&mut self, what: &str) -> Result<String, CheckpointError> {
        let length = self.u64(what)?;
        if length > MAX_STRING {
            let expected = format!("a string of at most {MAX_STRING} bytes");
            return Err(self.error(what, expected, format!("one of {length}")));
        }
        let bytes = self.take(length, what)?.to_vec();
        // Some vocabularies have tokens that are not UTF-8.
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Reads a value of the metadata: its type, then the value.
    pub(super) fn value(&mut self, key: &str) -> Result<Value, CheckpointError> {
        let kind = self.u32(key)?;
        const LIST: u32 = 9;
        if kind != LIST {
            return self.scalar(kind, key);
        }
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        if count > self.items_left {
            let expected = format!("lists of at most {MAX_ITEMS} items together");
            return Err(self.error(key, expected, format!("one of {count}")));
        }
        self.items_left -= count;
        let items = (0..count).map(|_| self.scalar(kind, key));
        Ok(Value::Array(items.collect::<Result<_, _>>()?))
    }

    fn scalar(&mut self, kind: u32, key: &str) -> Result<Value, CheckpointError> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array(key)?).into(),
            1 => i8::from_le_bytes(self.array(key)?).into(),
            2 => u16::from_le_bytes(self.array(key)?).into(),
            3 => i16::from_le_bytes(self.array(key)?).into(),
            4 => self.u32(key)?.into(),
            5 => i32::from_le_bytes(self.array(key)?).into(),
            6 => decimal(f32::from_le_bytes(self.array(key)?)),
            7 => (self.array::<1>(key)? != [0]).into(),
            8 => self.string(key)?.into(),
            10 => self.u64(key)?.into(),
            11 => i64::from_le_bytes(self.array(key)?).into(),
            12 => f64::from_le_bytes(self.array(key)?).into(),
            _ => {
                let expected = "a type of metadata (0 to 12; lists of lists are not supported)";
                return Err(self.error(key, expected, kind.to_string()));
            }
        })
    }
}

/// Returns the shortest decimal that rounds to this f32, which the original configuration had: 1e-5
/// and not 9.999999747378752e-6. NaN and infinity become null.
fn decimal(value: f32) -> Value {
    let shortest = value.to_string().parse().ok();
    shortest
        .and_then(Number::from_f64)
        .map_or(Value::Null, Value::Number)
}
