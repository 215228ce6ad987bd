//! The file formats of reference cases: safetensors files, told apart by their metadata.

mod authors;
mod reader;
mod sketch;

use sparq::SparqConfig;

use crate::case::Inputs;
use crate::{Array, Case, GoldenError, Problem};
use reader::Reader;

/// Reads the case in the bytes of a safetensors file; `file` names it in messages.
///
/// A file whose metadata has `sketch_bits` is a case with a key sketch, any other one a case of the paper's authors.
pub(crate) fn read(file: &str, bytes: &[u8]) -> Result<Case, GoldenError> {
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
) -> Result<(), GoldenError> {
    config
        .validate(problem.head_dim)
        .map_err(|source| GoldenError::Config {
            file: reader.file().to_string(),
            source,
        })
}

/// The query, the keys and the values.
///
/// To be read before anything is allocated by the sizes: that the file really has tensors of them bounds what a file can ask for.
fn inputs(reader: &Reader<'_>, problem: &Problem) -> Result<Inputs, GoldenError> {
    Ok(Inputs {
        q: reader.finite("q", &problem.query())?,
        k: reader.finite("k", &problem.cache())?,
        v: reader.finite("v", &problem.cache())?,
    })
}

/// The positions that are kept and valid, [B, H_kv, S], of which `selected` and `indices` must say the same.
fn selected(
    reader: &Reader<'_>,
    problem: &Problem,
    config: &SparqConfig,
    left_padding: &[usize],
) -> Result<Array<u8>, GoldenError> {
    let selected = reader.bytes("selected", &problem.per_kv_head(problem.seq), 1)?;
    let kept = config.top_k.min(problem.seq);
    let indices = reader.ascending("indices", &problem.per_kv_head(kept), problem.seq)?;
    for (row, (marks, indices)) in selected.rows().zip(indices.rows()).enumerate() {
        let (b, h) = (row / problem.n_kv_heads, row % problem.n_kv_heads);
        let mut wanted = vec![0; problem.seq];
        for &index in indices {
            let valid = index as usize >= left_padding[b];
            wanted[index as usize] = u8::from(valid);
        }
        if let Some(s) = (0..problem.seq).find(|&s| marks[s] != wanted[s]) {
            let expected = format!("{} at [{b}, {h}, {s}], as indices say", wanted[s]);
            return Err(reader.error("selected", expected, marks[s]));
        }
    }
    Ok(selected)
}

#[cfg(test)]
mod tests;
