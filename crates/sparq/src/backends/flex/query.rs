//! Stage 1 for one group: the selected components, and the weights that score a position.

use std::borrow::Cow;

use super::simd::sort_key;
use crate::SparqConfig;
use crate::methods::{Components, GroupScore, Magnitude};

/// The columns of scores of one position.
///
/// Each is a dot product with a weight column: one per query head, q[i1] over the head's
/// temperature, and one with the sum of those.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    /// The number of heads whose softmax is needed: all g or none. Theirs are the first columns.
    pub(super) heads: usize,
    /// The column that ranks positions. If there is none, the heads' summed probabilities rank
    /// them: see [`GroupKeys`](super::score::GroupKeys).
    pub(super) ranking: Option<usize>,
}

impl Columns {
    /// Returns the columns for g heads. `alpha` says whether the step needs their alpha.
    pub(super) fn new(config: &SparqConfig, group: usize, alpha: bool) -> Self {
        // For one head, logits and probabilities rank alike.
        let by_logits = config.group_score == GroupScore::Logits || group == 1;
        let heads = if alpha || !by_logits { group } else { 0 };
        let ranking = by_logits.then_some(if group == 1 { 0 } else { heads });
        Self { heads, ranking }
    }

    pub(super) fn count(self) -> usize {
        self.heads
            .max(self.ranking.map_or(0, |ranking| ranking + 1))
    }

    /// Returns the length of a block's softmax statistics: a maximum and a sum per head.
    /// At least 1, so that a block always has a chunk.
    pub(super) fn statistics(self) -> usize {
        (2 * self.heads).max(1)
    }
}

/// A group's queries on its selected components.
pub(super) struct Query {
    /// Stage 1: i1, ascending, [r].
    pub(super) components: Vec<u32>,
    /// [r, columns]. For codes, each weight contains the scale of its channel.
    pub(super) weights: Vec<f32>,
    pub(super) columns: Columns,
}

impl Query {
    /// Selects components of the group's queries q [g, d]. `scales` are those of the sketch's
    /// channels, [d].
    pub(super) fn new(
        q: &[f32],
        dim: usize,
        scales: Option<&[f32]>,
        config: &SparqConfig,
        columns: Columns,
    ) -> Self {
        let sizes = match (config.magnitude, scales) {
            (Magnitude::Contribution, Some(scales)) => {
                let scaled = |q: &[f32]| -> Vec<f32> {
                    q.iter().zip(scales).map(|(q, scale)| q * scale).collect()
                };
                Cow::Owned(q.chunks_exact(dim).flat_map(scaled).collect())
            }
            _ => Cow::Borrowed(q),
        };
        let components = select_components(&sizes, dim, config);
        let temperatures = sizes
            .chunks_exact(dim)
            .map(|sizes| temperature(sizes, &components));
        let temperatures: Vec<f32> = temperatures.collect();
        let mut weights = vec![0.0; components.len() * columns.count()];
        let rows = weights.chunks_exact_mut(columns.count());
        for (weights, &component) in rows.zip(&components) {
            let scale = scales.map_or(1.0, |scales| scales[component as usize]);
            let of_heads = || {
                q.chunks_exact(dim)
                    .map(|q| q[component as usize])
                    .zip(&temperatures)
                    .map(|(q, temperature)| q / temperature * scale)
            };
            if let Some(ranking) = columns.ranking {
                weights[ranking] = of_heads().sum();
            }
            for (weight, of_head) in weights[..columns.heads].iter_mut().zip(of_heads()) {
                *weight = of_head;
            }
        }
        Self {
            components,
            weights,
            columns,
        }
    }
}

/// Returns the r components with the largest magnitude in the group, ascending, for the sizes [g,
/// d] of the heads' components. Of equal magnitudes, which 16-bit queries have, the first ones are
/// selected.
fn select_components(q: &[f32], dim: usize, config: &SparqConfig) -> Vec<u32> {
    let column = |component: usize| q.chunks_exact(dim).map(move |q| q[component]);
    let magnitude = |component: usize| match config.components {
        Components::SumAbs => column(component).map(f32::abs).sum::<f32>(),
        Components::AbsSum => column(component).sum::<f32>().abs(),
    };
    let rank = config.rank.min(dim);
    let mut ranked: Vec<(u32, u32)> = (0..dim)
        .map(|component| (!sort_key(magnitude(component)), component as u32))
        .collect();
    if rank > 0 && rank < dim {
        ranked.select_nth_unstable(rank - 1);
    }
    let selected = ranked[..rank].iter().map(|&(_, component)| component);
    let mut components: Vec<u32> = selected.collect();
    components.sort_unstable();
    components
}

/// Returns the temperature of one head for the selected components, by the sizes of all, [d].
fn temperature(q: &[f32], components: &[u32]) -> f32 {
    let selected: f32 = components.iter().map(|&i| q[i as usize].abs()).sum();
    let all: f32 = q.iter().map(|q| q.abs()).sum();
    // If the selected components are all 0, so is every logit, and any temperature will do.
    let ratio = if selected == 0.0 { 1.0 } else { selected / all };
    (ratio * q.len() as f32).sqrt()
}
