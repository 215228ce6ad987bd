//! The layers of a model that can reuse the positions of other layers: [`LayerSharing`].
//!
//! [`calibration::layer_sharing`](crate::calibration::layer_sharing) measures it. For a method with
//! [`Anchors`](sparq::methods::Anchors), a [`SharingPlan`] chooses the layers that select.

mod plan;
mod roles;

use serde::{Deserialize, Serialize};
use sparq::SparqError;

pub use plan::SharingPlan;
pub(crate) use roles::{Role, Roles, Sharing};

/// The probability that a smaller one counts as: a step without any of it must not outweigh all
/// others.
pub(crate) const LEAST_KEPT: f64 = 1e-3;

/// The attention probability that a layer keeps at the positions that another layer selects, for
/// each pair of layers of a model.
///
/// Serialized it is the entry `sharing` of `sparq.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSharing {
    /// k of the measurement.
    pub top_k: usize,
    /// The number of decode steps that it averages over.
    pub steps: usize,
    /// Row b has an entry for each layer a up to b: the probability that layer b keeps at the
    /// positions of a, as the geometric mean over steps and query heads. `None` if the sliding
    /// windows differ.
    ///
    /// The negative logarithm of a kept probability is the Kullback-Leibler divergence of
    /// attention over the positions from dense attention.
    pub kept: Vec<Vec<Option<f64>>>,
    /// Row b has an entry for each layer a before b: for each KV head of b, the KV head of a whose
    /// positions keep the most. Empty if the sliding windows differ.
    pub heads: Vec<Vec<Vec<u32>>>,
}

impl LayerSharing {
    /// Returns the number of layers.
    pub fn layers(&self) -> usize {
        self.kept.len()
    }

    /// Checks the measurement against a model with these sliding windows, one for each layer, and
    /// this number of KV heads.
    ///
    /// # Errors
    /// [`SparqError::Value`] for the first part that does not fit.
    pub fn check(&self, windows: &[Option<usize>], kv_heads: usize) -> Result<(), SparqError> {
        let (layers, found) = (windows.len(), [self.kept.len(), self.heads.len()]);
        if let Some(found) = found.into_iter().find(|&found| found != layers) {
            let expected = format!("rows of {layers} layers (the model's)");
            return Err(value("sharing", expected, found));
        }
        for (b, (kept, heads)) in std::iter::zip(&self.kept, &self.heads).enumerate() {
            let lengths = [("kept", kept.len(), b + 1), ("heads", heads.len(), b)];
            if let Some((what, found, entries)) = lengths.into_iter().find(|row| row.1 != row.2) {
                let expected = format!("{entries} entries of \"{what}\" for layer {b}");
                return Err(value("sharing", expected, found));
            }
            for (a, kept) in kept.iter().enumerate() {
                let pair = format!("layers {a} and {b}");
                match kept {
                    Some(kept) if !(0.0..=1.0).contains(kept) => {
                        let expected = format!("a share from 0 to 1 for {pair}");
                        return Err(value("sharing", expected, kept));
                    }
                    Some(_) if windows[a] != windows[b] => {
                        let expected = format!("null for {pair}, whose sliding windows differ");
                        return Err(value("sharing", expected, "a share"));
                    }
                    None if windows[a] == windows[b] => {
                        let expected = format!("a share for {pair}");
                        return Err(value("sharing", expected, "null"));
                    }
                    _ => {}
                }
            }
            for (a, heads) in heads.iter().enumerate() {
                let shared = windows[a] == windows[b];
                let count = if shared { kv_heads } else { 0 };
                if heads.len() != count {
                    let expected = format!("{count} KV heads for layers {a} and {b}");
                    return Err(value("sharing", expected, heads.len()));
                }
                if let Some(head) = heads.iter().find(|&&head| head as usize >= kv_heads) {
                    let expected = format!("KV heads below {kv_heads} for layers {a} and {b}");
                    return Err(value("sharing", expected, head));
                }
            }
        }
        Ok(())
    }

    /// Returns whether layer b can reuse the positions of layer a.
    fn can_share(&self, a: usize, b: usize) -> bool {
        self.log_kept(a, b).is_some()
    }

    /// Returns the logarithm of the probability that layer b keeps at the positions of layer a, up
    /// to b.
    fn log_kept(&self, a: usize, b: usize) -> Option<f64> {
        let kept = self.kept.get(b)?.get(a).copied().flatten()?;
        Some(kept.max(LEAST_KEPT).ln())
    }
}

fn value(what: &'static str, expected: String, found: impl ToString) -> SparqError {
    SparqError::Value {
        what,
        expected,
        found: found.to_string(),
    }
}
