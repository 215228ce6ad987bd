//! Which shapes and settings to time.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sparq::methods::{Components, GroupScore};
use sparq::{Sketch, SparqConfig};

use crate::shape::{CacheType, Shape};
use crate::timing::Pace;

/// A set of shapes and settings with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Small shapes, in seconds: to see that everything runs, not for figures
    Quick,
    /// One sequence on a CPU, S from 4k to 64k, f32 and f16, at 1/8 of dense's bytes
    Cpu,
    /// The paper's B=64, 32 heads, S=4096, r=32, k=128, fp16, in a grid of B and S
    Paper,
    /// Multi-head and grouped-query shapes from B=1 to 64, S from 4k to 128k, fp16, r=32, k=128
    Field,
    /// The nine shapes with goals on one H100, fp16, r=32, k=128: a table of what is reached
    Goals,
}

impl Preset {
    /// The name in JSON files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Quick => "quick",
            Preset::Cpu => "cpu",
            Preset::Paper => "paper",
            Preset::Field => "field",
            Preset::Goals => "goals",
        }
    }

    /// How long its measurements take.
    pub fn pace(self) -> Pace {
        match self {
            Preset::Quick => Pace::QUICK,
            Preset::Cpu | Preset::Paper => Pace::STEADY,
            Preset::Field | Preset::Goals => Pace::BRIEF,
        }
    }

    /// What of its cases is measured.
    pub fn scope(self) -> Scope {
        match self {
            Preset::Field => Scope {
                eager_bytes: 70e6,
                dense_burn_bytes: 0.3e9,
            },
            Preset::Goals => Scope {
                eager_bytes: 0.0,
                dense_burn_bytes: 0.0,
            },
            Preset::Quick | Preset::Cpu | Preset::Paper => Scope::ALL,
        }
    }

    /// Whether buffers rotate so that no call finds the next one's cache in the processor's.
    pub fn rotates(self) -> bool {
        self != Preset::Quick
    }

    /// Its shapes and settings.
    pub fn grid(self) -> Grid {
        let full_and_coded = vec![Sketch::Full, Sketch::Bits4];
        let grid = Grid {
            shapes: vec![],
            dtypes: vec![CacheType::F16],
            sketches: full_and_coded,
            groups: vec![Group::PAPER],
            budget: Budget::Fixed {
                rank: 32,
                top_k: 128,
            },
        };
        match self {
            Preset::Quick => Grid {
                shapes: vec![
                    Shape::new(1, 4, 4, 64, 512),
                    Shape::new(1, 4, 4, 64, 1024),
                    Shape::new(1, 4, 2, 64, 512),
                    Shape::new(2, 4, 2, 64, 512),
                ],
                dtypes: vec![CacheType::F32],
                groups: vec![
                    Group::PAPER,
                    Group {
                        score: GroupScore::Logits,
                        ..Group::PAPER
                    },
                ],
                budget: Budget::Fixed {
                    rank: 16,
                    top_k: 64,
                },
                ..grid
            },
            Preset::Cpu => Grid {
                shapes: [4096, 8192, 16_384, 32_768, 65_536]
                    .into_iter()
                    .flat_map(|s| {
                        [(8, 8), (32, 8), (32, 32)].map(|(h, kv)| Shape::new(1, h, kv, 128, s))
                    })
                    .collect(),
                dtypes: vec![CacheType::F32, CacheType::F16],
                budget: Budget::Share(1.0 / 8.0),
                ..grid
            },
            Preset::Paper => Grid {
                shapes: [1, 4, 16, 64]
                    .into_iter()
                    .flat_map(|b| [4096, 16_384, 65_536].map(|s| Shape::new(b, 32, 32, 128, s)))
                    // 8.6 GB of K and V: with the sketch and a second buffer set a third of an 80 GB card.
                    .filter(|shape| shape.batch * shape.seq_len <= 1 << 19)
                    .collect(),
                ..grid
            },
            Preset::Field => Grid {
                shapes: [
                    (1, 32, 4096),
                    (1, 32, 16_384),
                    (1, 32, 65_536),
                    (1, 32, 131_072),
                    (64, 32, 4096),
                    (16, 32, 16_384),
                    (1, 8, 4096),
                    (1, 8, 16_384),
                    (1, 8, 65_536),
                    (1, 8, 131_072),
                    (32, 8, 16_384),
                    (64, 8, 4096),
                    (8, 8, 131_072),
                ]
                .map(|(b, kv, s)| Shape::new(b, 32, kv, 128, s))
                .to_vec(),
                groups: vec![Group::PAPER, Group::AS_ONE],
                ..grid
            },
            Preset::Goals => Grid {
                shapes: GOALS.map(|goal| goal.shape).to_vec(),
                groups: vec![Group::PAPER, Group::AS_ONE],
                ..grid
            },
        }
    }
}

/// What a step has to reach on one H100 with fp16, r = 32 and k = 128, captured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// The shape.
    pub shape: Shape,
    /// Microseconds with the full sketch.
    pub full_us: f64,
    /// Microseconds with codes of 4 bits.
    pub bits4_us: f64,
}

impl Goal {
    const fn new(
        (batch, kv_heads, seq_len): (usize, usize, usize),
        full_us: f64,
        bits4_us: f64,
    ) -> Self {
        Self {
            shape: Shape::new(batch, 32, kv_heads, 128, seq_len),
            full_us,
            bits4_us,
        }
    }

    /// Microseconds with this sketch, if there is a goal for it.
    pub fn us(&self, sketch: Sketch) -> Option<f64> {
        match sketch {
            Sketch::Full => Some(self.full_us),
            Sketch::Bits8 => None,
            Sketch::Bits4 => Some(self.bits4_us),
        }
    }
}

/// The goals, set from the quickest dense attention of PyTorch and the floors that the card's copy bandwidth gives.
pub const GOALS: [Goal; 9] = [
    Goal::new((64, 32, 4096), 260.0, 125.0),
    Goal::new((16, 32, 16_384), 220.0, 80.0),
    Goal::new((8, 8, 131_072), 210.0, 70.0),
    Goal::new((32, 8, 16_384), 120.0, 42.0),
    Goal::new((64, 8, 4096), 85.0, 40.0),
    Goal::new((1, 32, 16_384), 24.0, 18.0),
    Goal::new((1, 8, 131_072), 36.0, 22.0),
    Goal::new((1, 8, 16_384), 17.0, 15.0),
    Goal::new((1, 8, 4096), 19.0, 17.0),
];

/// What of the cases is measured, since time on a GPU is dear.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scope {
    /// Calls are timed eagerly too where K and V have at most these bytes: in long calls the launches are lost.
    pub eager_bytes: f64,
    /// Dense attention of burn is timed where K and V, expanded to all heads, have at most these bytes.
    pub dense_burn_bytes: f64,
}

impl Scope {
    /// Everything.
    pub const ALL: Scope = Scope {
        eager_bytes: f64::INFINITY,
        dense_burn_bytes: f64::INFINITY,
    };
}

/// How the query heads of a group agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// On positions.
    pub score: GroupScore,
    /// On components.
    pub components: Components,
}

impl Group {
    /// As in the paper.
    pub const PAPER: Group = Group {
        score: GroupScore::Probabilities,
        components: Components::SumAbs,
    };
    /// The whole group scores as one query, which makes one score of a position instead of g.
    pub const AS_ONE: Group = Group {
        score: GroupScore::Logits,
        components: Components::AbsSum,
    };
}

/// How r and k are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// The same for every shape.
    Fixed {
        /// r.
        rank: usize,
        /// k.
        top_k: usize,
    },
    /// By [`SparqConfig::for_compression`] for this share of dense's bytes.
    Share(f64),
}

/// Shapes x types x settings.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The shapes, in the order in which they run.
    pub shapes: Vec<Shape>,
    /// Types of the cache.
    pub dtypes: Vec<CacheType>,
    /// Key sketches.
    pub sketches: Vec<Sketch>,
    /// How groups agree; with one query head for each key/value head all are the same, and the first stands for all.
    pub groups: Vec<Group>,
    /// r and k.
    pub budget: Budget,
}

/// One shape with all settings that are compared on it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The shape.
    pub shape: Shape,
    /// The type of K and V.
    pub dtype: CacheType,
    /// SparQ's settings.
    pub settings: Vec<SparqConfig>,
}

impl Grid {
    /// The cases, all of them valid.
    ///
    /// # Errors
    /// Where something is empty, or settings do not fit a shape; the message names both.
    pub fn cases(&self) -> Result<Vec<Case>> {
        let empty = self.shapes.is_empty()
            || self.dtypes.is_empty()
            || self.sketches.is_empty()
            || self.groups.is_empty();
        if empty {
            bail!(
                "expected at least one shape, dtype, sketch and way to agree in a group, found none"
            );
        }
        let mut cases = Vec::new();
        for &shape in &self.shapes {
            for &dtype in &self.dtypes {
                let settings = self.settings(&shape)?;
                cases.push(Case {
                    shape,
                    dtype,
                    settings,
                });
            }
        }
        Ok(cases)
    }

    fn settings(&self, shape: &Shape) -> Result<Vec<SparqConfig>> {
        let groups = match shape.group_size() {
            1 => &self.groups[..1],
            _ => &self.groups[..],
        };
        let mut all = Vec::new();
        for &sketch in &self.sketches {
            for group in groups {
                let start = match self.budget {
                    Budget::Fixed { rank, top_k } => SparqConfig::new(rank, top_k),
                    Budget::Share(_) => SparqConfig::new(1, 1),
                };
                let config = start
                    .with_sketch(sketch)
                    .with_group_score(group.score)
                    .with_components(group.components);
                let config = match self.budget {
                    Budget::Fixed { .. } => Ok(config),
                    Budget::Share(share) => {
                        config.for_compression(shape.head_dim, shape.seq_len, share)
                    }
                };
                let config = config
                    .and_then(|config| config.validate(shape.head_dim).map(|()| config))
                    .with_context(|| format!("the settings do not fit the shape {shape}"))?;
                all.push(config);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use sparq::Transfers;

    use super::*;

    #[test]
    fn every_preset_has_valid_cases() {
        for preset in Preset::value_variants() {
            let cases = preset.grid().cases().unwrap();
            assert!(!cases.is_empty() && cases.iter().all(|case| case.settings.len() >= 2));
        }
    }

    #[test]
    fn the_cpu_settings_read_an_eighth_of_the_bytes_at_most() {
        for case in Preset::Cpu.grid().cases().unwrap() {
            let cache = case.shape.cache(case.dtype);
            let dense = Transfers::dense(&cache, case.shape.seq_len).bytes();
            for config in case.settings {
                let share = Transfers::sparq(&cache, case.shape.seq_len, &config).bytes() / dense;
                assert!(share <= 0.1251, "{} {config:?}: {share}", case.shape);
            }
        }
    }

    #[test]
    fn group_scores_differ_only_where_heads_share_a_key() {
        let cases = Preset::Quick.grid().cases().unwrap();
        let count = |kv_heads| {
            let case = cases.iter().find(|case| case.shape.kv_heads == kv_heads);
            case.unwrap().settings.len()
        };
        assert_eq!((count(4), count(2)), (2, 4));
    }

    #[test]
    fn goals_lie_between_the_floor_and_dense_attention() {
        // GB/s of a copy on the card that the goals are for.
        let us = |bytes: f64| bytes / 3020.0 / 1e3;
        for goal in GOALS {
            let shape = goal.shape;
            let cache = shape.cache(CacheType::F16);
            for sketch in [Sketch::Full, Sketch::Bits4] {
                let config = SparqConfig::new(32, 128).with_sketch(sketch);
                let floor = us(Transfers::sparq(&cache, shape.seq_len, &config).bytes());
                let found = goal.us(sketch).unwrap();
                assert!(found > floor, "{shape} {sketch:?}: {found} and {floor}");
            }
            assert!(goal.bits4_us <= goal.full_us);
        }
    }

    #[test]
    fn settings_that_do_not_fit_are_named_with_the_shape() {
        let grid = Grid {
            budget: Budget::Fixed {
                rank: 65,
                top_k: 64,
            },
            ..Preset::Quick.grid()
        };
        let error = format!("{:#}", grid.cases().unwrap_err());
        assert!(
            error.contains("d=64") && error.contains("found 65"),
            "{error}"
        );
    }
}
