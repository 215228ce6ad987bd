//! The selections of components that rounding errors allow.

use super::{NORMAL, UNIT};
use crate::float64::stages::{Codes, HeadInput};

/// The largest number of equivalent component selections to try.
const MAX_SELECTIONS: usize = 32;

/// Returns the component selections that are right for stage 1. There are several if rounding
/// errors can change the order. Returns `None` if there are too many.
pub(super) fn component_selections(
    input: &HeadInput<'_>,
    codes: Option<Codes<'_>>,
) -> Option<Vec<Vec<usize>>> {
    let scores = input.component_scores(codes);
    let (rank, group) = (input.config.rank, input.queries().len() as f64);
    let sums = |c: usize| -> f64 { input.queries().map(|q| f64::from(q[c]).abs()).sum() };
    let error = |c: usize| {
        let weight = input.weight(c, codes);
        // One more rounding for the product with the weight.
        let roundings = match (input.queries().len(), weight == 1.0) {
            (1, true) => 0.0,
            (1, false) => 1.0,
            _ => group + 1.0,
        };
        weight * (roundings * UNIT * sums(c) + group * NORMAL) + group * NORMAL
    };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let border = order[rank - 1];
    let close = |c: usize| (scores[c] - scores[border]).abs() <= error(c) + error(border);
    let sure = order[..rank].iter().copied().filter(|&c| !close(c));
    let sure: Vec<usize> = sure.collect();
    let open: Vec<usize> = order.into_iter().filter(|&c| close(c)).collect();
    let subsets = subsets(&open, rank - sure.len())?.into_iter();
    Some(subsets.map(|some| [&sure[..], &some].concat()).collect())
}

/// Returns all subsets of `count` elements, or `None` if there are more than [`MAX_SELECTIONS`].
pub(super) fn subsets(all: &[usize], count: usize) -> Option<Vec<Vec<usize>>> {
    let mut ways = 1usize;
    for i in 0..count.min(all.len() - count) {
        ways = ways * (all.len() - i) / (i + 1);
        if ways > MAX_SELECTIONS {
            return None;
        }
    }
    Some(subsets_of(all, count))
}

/// Returns all subsets of `count` elements.
fn subsets_of(all: &[usize], count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    if all.len() < count {
        return Vec::new();
    }
    let with = subsets_of(&all[1..], count - 1);
    let with = with.into_iter().map(|rest| [&all[..1], &rest[..]].concat());
    with.chain(subsets_of(&all[1..], count)).collect()
}
