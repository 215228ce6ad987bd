//! Speculative sampling (Leviathan et al., arXiv 2211.17192): the fate of one drafted token.

use crate::text::sampler::{Candidate, Sampler};

/// Returns `None` if a drafted token is accepted, else the token that replaces it.
///
/// The token was drawn from the distribution `draft`, q. Accepted with probability min(1, p / q)
/// and else drawn from the positive part of p - q, it is a draw from p, `target`.
pub fn judge(
    sampler: &mut Sampler,
    token: u32,
    draft: &[Candidate],
    target: &[Candidate],
) -> Option<u32> {
    let of = |candidates: &[Candidate]| {
        let found = candidates.iter().find(|candidate| candidate.id == token);
        found.map_or(0.0, |candidate| candidate.probability)
    };
    let (q, p) = (of(draft), of(target));
    if p >= q || sampler.uniform() * q < p {
        return None;
    }
    let largest = draft.iter().map(|candidate| candidate.id).max();
    let mut drafted = vec![0.0; largest.map_or(0, |id| id as usize + 1)];
    for candidate in draft {
        drafted[candidate.id as usize] = candidate.probability;
    }
    let mut rest: Vec<Candidate> = Vec::with_capacity(target.len());
    for candidate in target {
        let drafted = drafted.get(candidate.id as usize).copied().unwrap_or(0.0);
        if candidate.probability > drafted {
            rest.push(Candidate {
                probability: candidate.probability - drafted,
                ..*candidate
            });
        }
    }
    let sum: f64 = rest.iter().map(|candidate| candidate.probability).sum();
    for candidate in &mut rest {
        candidate.probability /= sum;
    }
    // p is below q at the token, so above it elsewhere, but for rounding.
    Some(match rest.is_empty() {
        true => sampler.draw(target),
        false => sampler.draw(&rest),
    })
}
