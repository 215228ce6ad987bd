//! The file formats of reference cases: two kinds of safetensors files with different metadata.

mod authors;
mod reader;
mod sketch;

use sparq::SparqConfig;

use crate::case::Inputs;
use crate::{Array, Case, ConformanceError, Problem};
use reader::Reader;

/// Reads the case in the bytes of a safetensors file. Errors name the file `file`.
///
/// A file with `sketch_bits` in its metadata is a case with a key sketch of codes, any other file a
/// case of the paper's authors.
pub(crate) fn read(file: &str, bytes: &[u8]) -> Result<Case, ConformanceError> {
    let reader = Reader::new(file, bytes)?;
    if reader.has_entry("sketch_bits") {
        sketch::read(&reader)
    } else {
        authors::read(&reader)
    }
}

/// Checks the settings against the sizes.
fn validate(
    reader: &Reader<'_>,
    config: &SparqConfig,
    problem: &Problem,
) -> Result<(), ConformanceError> {
    config
        .validate(problem.head_dim)
        .map_err(|source| ConformanceError::Config {
            file: reader.file().to_string(),
            source,
        })
}

/// Reads the query, the keys and the values.
///
/// They come before any allocation from the sizes in the metadata: only sizes of tensors that the
/// file really contains are allocated.
fn inputs(reader: &Reader<'_>, problem: &Problem) -> Result<Inputs, ConformanceError> {
    Ok(Inputs {
        q: reader.finite("q", &problem.query())?,
        k: reader.finite("k", &problem.cache())?,
        v: reader.finite("v", &problem.cache())?,
    })
}

/// Reads the marks of the selected valid positions, [B, H_kv, S]. `selected` and `indices` must
/// agree.
fn selected(
    reader: &Reader<'_>,
    problem: &Problem,
    config: &SparqConfig,
    left_padding: &[usize],
) -> Result<Array<u8>, ConformanceError> {
    let selected = reader.bytes("selected", &problem.per_kv_head(problem.seq), 1)?;
    let count = config.top_k.min(problem.seq);
    let indices = reader.ascending("indices", &problem.per_kv_head(count), problem.seq)?;
    for (head, (marks, indices)) in selected.rows().zip(indices.rows()).enumerate() {
        let (b, h) = (head / problem.n_kv_heads, head % problem.n_kv_heads);
        let mut wanted = vec![0; problem.seq];
        for &index in indices {
            let valid = index as usize >= left_padding[b];
            wanted[index as usize] = u8::from(valid);
        }
        if let Some(s) = (0..problem.seq).find(|&s| marks[s] != wanted[s]) {
            let expected = format!("{} at [{b}, {h}, {s}], to match indices", wanted[s]);
            return Err(reader.error("selected", expected, marks[s]));
        }
    }
    Ok(selected)
}

#[cfg(test)]
mod tests;
