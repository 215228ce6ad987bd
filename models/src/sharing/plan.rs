//! The choice of anchors: [`SharingPlan`].

use sparq::SparqError;

use super::{LayerSharing, value};

/// The layers that select positions, and the layer whose positions each layer takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharingPlan {
    /// For each layer the layer that selects its positions: itself if it is an anchor.
    pub anchor_of: Vec<usize>,
}

impl SharingPlan {
    /// Returns whether a layer selects its positions.
    pub fn is_anchor(&self, layer: usize) -> bool {
        self.anchor_of[layer] == layer
    }

    /// Returns the number of layers that select.
    pub fn anchors(&self) -> usize {
        let layers = 0..self.anchor_of.len();
        layers.filter(|&layer| self.is_anchor(layer)).count()
    }
}

/// Layers that can share, in their order, and the best anchors for each number of them.
struct Group {
    layers: Vec<usize>,
    /// Entry m is for m + 1 anchors.
    best: Vec<Choice>,
}

/// Anchors, and the sum of the logarithms of what the layers of their group keep.
#[derive(Clone)]
struct Choice {
    kept: f64,
    /// In ascending order.
    anchors: Vec<usize>,
}

impl LayerSharing {
    /// Returns the plan with as many anchors that keeps the most attention probability, as the
    /// geometric mean over the layers: the least divergence of what layers attend to from dense
    /// attention.
    ///
    /// Layers share within groups with the same sliding window, and the first of a group is an
    /// anchor. Each group is divided into segments of consecutive layers, of which the first is the
    /// anchor of the others: dynamic programming finds the best division. Then each layer takes
    /// the best of all anchors before it. The layers before `first` take no part: each is its own
    /// anchor, and is not counted.
    ///
    /// # Errors
    /// [`SparqError::Value`] if there are fewer anchors than groups, or more than layers.
    pub fn plan(&self, anchors: usize, first: usize) -> Result<SharingPlan, SparqError> {
        self.plan_of(&self.groups(first), anchors, first)
    }

    /// Returns the plan for each number of anchors from 0 up to all layers, as [`plan`](Self::plan)
    /// does; `None` where there is no plan.
    pub fn plans(&self, first: usize) -> Vec<Option<SharingPlan>> {
        let groups = self.groups(first);
        let numbers = 0..=self.layers();
        let plan = |anchors| self.plan_of(&groups, anchors, first).ok();
        numbers.map(plan).collect()
    }

    fn plan_of(
        &self,
        groups: &[Group],
        anchors: usize,
        first: usize,
    ) -> Result<SharingPlan, SparqError> {
        let layers = self.layers().saturating_sub(first);
        if anchors < groups.len().max(1) || anchors > layers {
            let expected = match groups.len() {
                0 | 1 => format!("1 to {layers} (the model's layers)"),
                least => format!("{least} (one for each sliding window) to {layers} (the layers)"),
            };
            return Err(value("anchors", expected, anchors));
        }
        let best = divide(groups, anchors);
        let mut anchor_of: Vec<usize> = (0..self.layers()).collect();
        for (b, of) in anchor_of.iter_mut().enumerate().skip(first) {
            if !best.anchors.contains(&b) {
                let before = best.anchors.iter().copied().filter(|&a| a < b);
                let most = before.max_by(|&a, &other| {
                    let kept = |a| self.log_kept(a, b).unwrap_or(f64::NEG_INFINITY);
                    kept(a).total_cmp(&kept(other))
                });
                *of = most.expect("the first layer of each group is an anchor");
            }
        }
        Ok(SharingPlan { anchor_of })
    }

    /// Returns the attention probability that a plan keeps, as the geometric mean over the layers.
    pub fn kept(&self, plan: &SharingPlan) -> f64 {
        let layers = plan.anchor_of.iter().enumerate();
        let logs = layers.map(|(b, &a)| self.log_kept(a, b).unwrap_or(0.0));
        (logs.sum::<f64>() / self.layers().max(1) as f64).exp()
    }

    /// Returns the groups of layers that can share, from layer `first` on.
    fn groups(&self, first: usize) -> Vec<Group> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for layer in first..self.layers() {
            let known = groups.iter_mut();
            match { known }.find(|group| self.can_share(group[0], layer)) {
                Some(group) => group.push(layer),
                None => groups.push(vec![layer]),
            }
        }
        let groups = groups.into_iter();
        groups.map(|layers| self.divisions(layers)).collect()
    }

    /// Finds the best division of a group of layers into each number of segments.
    fn divisions(&self, layers: Vec<usize>) -> Group {
        let count = layers.len();
        // Entry [start][end] is the sum of the segment start .. end.
        let segment: Vec<Vec<f64>> = (0..count)
            .map(|start| {
                let mut sums = vec![0.0; count + 1];
                for end in start..count {
                    let kept = self.log_kept(layers[start], layers[end]).unwrap_or(0.0);
                    sums[end + 1] = sums[end] + kept;
                }
                sums
            })
            .collect();
        // Entry [end]: the best division of the first `end` layers.
        let mut best: Vec<Option<Choice>> = vec![None; count + 1];
        best[0] = Some(Choice {
            kept: 0.0,
            anchors: Vec::new(),
        });
        let mut found = Vec::with_capacity(count);
        for _ in 0..count {
            best = (0..=count)
                .map(|end| {
                    let with = |start: usize| {
                        let before = best[start].as_ref()?;
                        let mut anchors = before.anchors.clone();
                        anchors.push(layers[start]);
                        let kept = before.kept + segment[start][end];
                        Some(Choice { kept, anchors })
                    };
                    let choices = (0..end).filter_map(with);
                    choices.max_by(|a, b| a.kept.total_cmp(&b.kept))
                })
                .collect();
            found.extend(best[count].clone());
        }
        Group {
            layers,
            best: found,
        }
    }
}

/// Divides a number of anchors among the groups, at least one for each, and returns all of them.
fn divide(groups: &[Group], anchors: usize) -> Choice {
    // Entry n: the best choice of n anchors from the groups so far.
    let mut best: Vec<Option<Choice>> = vec![None; anchors + 1];
    best[0] = Some(Choice {
        kept: 0.0,
        anchors: Vec::new(),
    });
    for group in groups {
        best = (0..=anchors)
            .map(|total| {
                let own = 1..=total.min(group.layers.len());
                let with = |own: usize| {
                    let (before, chosen) = (best[total - own].as_ref()?, group.best.get(own - 1)?);
                    let mut anchors = [before.anchors.as_slice(), &chosen.anchors].concat();
                    anchors.sort_unstable();
                    let kept = before.kept + chosen.kept;
                    Some(Choice { kept, anchors })
                };
                let choices = own.filter_map(with);
                choices.max_by(|a, b| a.kept.total_cmp(&b.kept))
            })
            .collect();
    }
    let all = best.swap_remove(anchors);
    all.expect("the number of anchors has been checked")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A measurement with pseudo-random shares. `group` is the sliding window's of each layer.
    fn random(layers: usize, seed: u64, group: impl Fn(usize) -> usize) -> LayerSharing {
        let mut state = seed;
        let mut share = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        let rows = (0..layers).map(|b| {
            let shares = (0..=b).map(|a| (group(a) == group(b)).then(&mut share));
            shares.collect::<Vec<_>>()
        });
        LayerSharing {
            top_k: 8,
            steps: 1,
            kept: rows.collect(),
            heads: Vec::new(),
        }
    }

    /// Returns the sum of the logarithms of what layers keep in segments that begin at the anchors,
    /// in each group of layers.
    fn kept_by_segments(
        sharing: &LayerSharing,
        anchors: &[usize],
        group: impl Fn(usize) -> usize,
    ) -> Option<f64> {
        let mut sum = 0.0;
        for b in 0..sharing.layers() {
            let mut before = anchors.iter().filter(|&&a| a <= b && group(a) == group(b));
            sum += sharing.log_kept(*before.next_back()?, b)?;
        }
        Some(sum)
    }

    #[test]
    fn plans_are_the_best_of_all_divisions() {
        for seed in 0..60 {
            let layers = 1 + seed as usize % 9;
            let kinds = 1 + seed as usize / 9 % 3;
            let group = |layer: usize| layer % kinds;
            let sharing = random(layers, seed, group);
            for anchors in kinds.min(layers)..=layers {
                let subsets = (0..1u32 << layers).filter(|set| set.count_ones() == anchors as u32);
                let subsets = subsets.map(|set| {
                    let of = (0..layers).filter(|&layer| set >> layer & 1 == 1);
                    of.collect::<Vec<_>>()
                });
                let sums = subsets.filter_map(|set| kept_by_segments(&sharing, &set, group));
                let most = sums.fold(f64::MIN, f64::max);
                let found = divide(&sharing.groups(0), anchors);
                assert!((found.kept - most).abs() < 1e-9, "{seed} {anchors}");
                let own = kept_by_segments(&sharing, &found.anchors, group).unwrap();
                assert!((own - most).abs() < 1e-9, "{seed} {anchors}");

                let plan = sharing.plan(anchors, 0).unwrap();
                assert_eq!(plan.anchors(), anchors);
                let kept = sharing.kept(&plan).ln() * layers as f64;
                assert!(
                    kept >= most - 1e-9,
                    "the best anchor is no worse than the last"
                );
                for (b, &a) in plan.anchor_of.iter().enumerate() {
                    assert!(plan.is_anchor(a) && a <= b && group(a) == group(b));
                }
            }
        }
    }

    #[test]
    fn first_layers_can_be_left_out() {
        let sharing = random(7, 3, |_| 0);
        let plan = sharing.plan(2, 3).unwrap();
        assert_eq!(plan.anchor_of[..4], [0, 1, 2, 3]);
        assert!(plan.anchor_of[4..].iter().all(|&anchor| anchor >= 3));
        assert_eq!(plan.anchors(), 3 + 2);
    }

    #[test]
    fn too_few_or_too_many_anchors_are_errors() {
        let of = |anchors, kinds: usize| {
            let plan = random(6, 1, |layer| layer % kinds).plan(anchors, 0);
            plan.map(drop).unwrap_err().to_string()
        };
        assert!(of(0, 1).contains("expected 1 to 6"), "{}", of(0, 1));
        assert!(of(7, 1).contains("found 7"));
        assert!(of(1, 2).contains("expected 2 (one for each sliding window) to 6"));
    }
}
