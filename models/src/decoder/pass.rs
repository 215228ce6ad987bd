//! The kinds of passes through a decoder: [`Pass`], and its part of one layer, [`LayerPass`].

use sparq::{KvCache, Method};

use crate::{ModelCache, SequenceStep};

/// A pass through all layers, with the caches that it appends to.
pub(super) enum Pass<'a, 'b> {
    /// A prefill.
    Prompt(&'a mut ModelCache),
    /// A decode step of a batch in one cache.
    Step(&'a mut ModelCache, &'a Method),
    /// A decode step of sequences with a cache each.
    Each(&'a mut [SequenceStep<'b>]),
}

impl Pass<'_, '_> {
    /// Returns a number of layers among the caches that is not `layers`, if there is one.
    pub(super) fn other_than(&self, layers: usize) -> Option<usize> {
        match self {
            Pass::Prompt(cache) | Pass::Step(cache, _) => Some(cache.layers.len()),
            Pass::Each(sequences) => {
                let mut counts = sequences.iter().map(|sequence| sequence.cache.layers.len());
                counts.find(|&count| count != layers)
            }
        }
        .filter(|&count| count != layers)
    }
}

/// A pass through one layer.
pub(super) enum LayerPass<'a, 'b> {
    Prompt(&'a mut KvCache),
    Step(&'a mut KvCache, &'a Method),
    Each(&'a mut [(&'b mut KvCache, &'b Method)]),
}
