//! The state that methods keep with a cache, for example the attention that positions have
//! received.

use std::any::Any;
use std::fmt;

use burn::tensor::Tensor;

/// The state of one method in a cache. The cache carries it and knows no more than this interface.
pub(crate) trait MethodState: Any + fmt::Debug + Send + Sync {
    /// Returns a copy for a clone of the cache.
    fn duplicate(&self) -> Box<dyn MethodState>;

    /// Forgets all but the first `len` positions.
    fn truncate(&mut self, len: usize);

    /// Bytes that count as memory of the cache.
    fn bytes(&self) -> usize {
        0
    }

    /// Returns whether [`observe_attention`](Self::observe_attention) is to be called.
    fn observes_attention(&self) -> bool {
        false
    }

    /// Takes the exact attention weights that new queries gave to each position.
    ///
    /// They are averaged over the query heads of a group and summed over the queries, [B, H_kv, S].
    fn observe_attention(&mut self, _weights: Tensor<3>) {}

    /// Returns whether every position may still be read, that is, whether none has been evicted.
    fn is_whole(&self) -> bool {
        true
    }
}

/// The states of a cache, at most one of each type.
#[derive(Debug, Default)]
pub(crate) struct MethodStates(Vec<Box<dyn MethodState>>);

impl Clone for MethodStates {
    fn clone(&self) -> Self {
        Self(self.0.iter().map(|state| state.duplicate()).collect())
    }
}

impl MethodStates {
    pub fn get<T: MethodState>(&self) -> Option<&T> {
        let mut found = self.0.iter().map(|state| state.as_ref() as &dyn Any);
        found.find_map(<dyn Any>::downcast_ref)
    }

    pub fn get_mut<T: MethodState>(&mut self) -> Option<&mut T> {
        let mut found = self
            .0
            .iter_mut()
            .map(|state| state.as_mut() as &mut dyn Any);
        found.find_map(<dyn Any>::downcast_mut)
    }

    /// Puts a state in the place of the one of its type.
    pub fn set<T: MethodState>(&mut self, state: T) {
        match self.get_mut() {
            Some(place) => *place = state,
            None => self.0.push(Box::new(state)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops the states that observe attention.
    pub fn stop_observing(&mut self) {
        self.0.retain(|state| !state.observes_attention());
    }

    pub fn truncate(&mut self, len: usize) {
        self.0.iter_mut().for_each(|state| state.truncate(len));
    }

    pub fn bytes(&self) -> usize {
        self.0.iter().map(|state| state.bytes()).sum()
    }

    pub fn observes_attention(&self) -> bool {
        self.0.iter().any(|state| state.observes_attention())
    }

    pub fn observe_attention(&mut self, weights: Tensor<3>) {
        let observers = self.0.iter_mut().filter(|state| state.observes_attention());
        observers.for_each(|state| state.observe_attention(weights.clone()));
    }

    pub fn is_whole(&self) -> bool {
        self.0.iter().all(|state| state.is_whole())
    }
}
