//! The kinds of passes through a decoder: [`Pass`], and its part of one layer, [`LayerPass`].

use std::sync::Arc;

use burn::tensor::{Int, Tensor};
use sparq::{KvCache, Method, SparqError};

use crate::sharing::{Role, Roles};
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

    /// Returns the selections of a step: one for each cache.
    ///
    /// # Errors
    /// If the model has no plan for the anchors of a method.
    pub(super) fn selections(&self) -> Result<Vec<Selections>, SparqError> {
        match self {
            Pass::Prompt(_) => Ok(Vec::new()),
            Pass::Step(cache, method) => Ok(vec![Selections::new(cache, method)?]),
            Pass::Each(sequences) => {
                let sequences = sequences.iter();
                let new = |of: &SequenceStep<'_>| Selections::new(of.cache, &of.method);
                sequences.map(new).collect()
            }
        }
    }

    /// Keeps what the layer `index` has selected for later layers.
    pub(super) fn keep_selections(&mut self, index: usize, selections: &mut [Selections]) {
        match self {
            Pass::Prompt(_) => {}
            Pass::Step(cache, _) => selections[0].after(index, &mut cache.layers[index]),
            Pass::Each(sequences) => {
                for (sequence, selections) in sequences.iter_mut().zip(selections) {
                    selections.after(index, &mut sequence.cache.layers[index]);
                }
            }
        }
    }
}

/// The positions that the layers of a step have selected so far, as far as later layers reuse them.
pub(super) struct Selections {
    /// `None` if every layer selects its own.
    roles: Option<Arc<Roles>>,
    /// [B, H_kv, k] of each layer.
    positions: Vec<Option<Tensor<3, Int>>>,
}

impl Selections {
    fn new(cache: &ModelCache, method: &Method) -> Result<Self, SparqError> {
        let roles = cache.roles(method)?;
        let layers = roles.as_ref().map_or(0, |_| cache.layers.len());
        Ok(Self {
            roles,
            positions: vec![None; layers],
        })
    }

    /// Prepares the cache of layer `index` for its part of the step. Returns its method.
    pub(super) fn before(&self, index: usize, cache: &mut KvCache, method: &Method) -> Method {
        let Some(roles) = &self.roles else {
            return *method;
        };
        match roles.role(index) {
            Role::Anchor { is_reused } => cache.keep_selection(*is_reused),
            Role::Reuse { anchor, heads } => {
                // None in a step that is dense.
                let positions = self.positions[*anchor].clone();
                cache.reuse(positions.map(|positions| (positions, heads.clone())));
            }
        }
        roles.cache_method(index, method)
    }

    fn after(&mut self, index: usize, cache: &mut KvCache) {
        if let Some(roles) = &self.roles
            && let Role::Anchor { is_reused: true } = roles.role(index)
        {
            self.positions[index] = cache.take_selection();
            cache.keep_selection(false);
        }
    }
}

/// A pass through one layer.
pub(super) enum LayerPass<'a, 'b> {
    Prompt(&'a mut KvCache),
    Step(&'a mut KvCache, &'a Method),
    Each(&'a mut [(&'b mut KvCache, &'b Method)]),
}
