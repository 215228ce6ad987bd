//! The file of one entry.

/// The first bytes of a file; the last is the version of the format.
const MAGIC: &[u8; 8] = b"sparqkv\x01";
/// Magic, checksum, origin, length of the key.
const HEADER: usize = 32;

/// One entry of a namespace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// 0 if this machine computed it, 1 if it was imported.
    pub origin: i64,
}

impl Entry {
    /// Returns the bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.key.len() + self.value.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&self.origin.to_le_bytes());
        bytes.extend_from_slice(&(self.key.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.key);
        bytes.extend_from_slice(&self.value);
        let checksum = hash(&bytes[16..], 0).to_le_bytes();
        bytes[8..16].copy_from_slice(&checksum);
        bytes
    }

    /// Reads the bytes of a file; `None` if they are damaged.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        if bytes.get(..8)? != MAGIC || word(8)? != hash(bytes.get(16..)?, 0) {
            return None;
        }
        let key_len = usize::try_from(word(24)?).ok()?;
        let body = bytes.get(HEADER..)?;
        Some(Self {
            key: body.get(..key_len)?.to_vec(),
            value: body.get(key_len..)?.to_vec(),
            origin: word(16)? as i64,
        })
    }
}

/// Returns the name of the file of a key: 32 hexadecimal digits.
pub(crate) fn file_name(key: &[u8]) -> String {
    format!("{:016x}{:016x}", hash(key, 1), hash(key, 2))
}

/// A 64-bit hash that is the same in every process: FNV-1a over words of 8 bytes, with a final mix.
fn hash(bytes: &[u8], seed: u64) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut state = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut add = |word: u64| {
        state = (state ^ word).wrapping_mul(PRIME);
        state ^= state >> 29;
    };
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        add(u64::from_le_bytes(
            word.try_into().expect("a chunk of 8 bytes"),
        ));
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    add(u64::from_le_bytes(last));
    add(bytes.len() as u64);
    state = (state ^ (state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    state ^ (state >> 33)
}
