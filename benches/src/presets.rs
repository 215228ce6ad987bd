//! The presets: shapes and settings to time, by name.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sparq::methods::{Components, GroupScore};
use sparq::{RowFormat, Sketch, SparqConfig};

use sparq_measure::attention::{Case, Scope};
use sparq_measure::shape::{CacheType, Shape};
use sparq_measure::timing::Pace;

use crate::goals::GOALS;

/// A set of shapes and settings with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Small shapes, in seconds: checks that everything runs; the times have no meaning
    Quick,
    /// One sequence on a CPU, S from 4k to 64k, f32 and f16, at 1/8 of the bytes of dense attention
    Cpu,
    /// The paper's B=64, 32 heads, S=4096, r=32, k=128, fp16, in a grid of B and S
    Paper,
    /// Multi-head and grouped-query shapes from B=1 to 64, S from 4k to 128k, fp16, r=32, k=128
    Field,
    /// The nine shapes with goals on one H100, fp16, r=32, k=128, with a table of the goals
    Goals,
}

impl Preset {
    /// How long to measure each row.
    pub fn pace(self) -> Pace {
        match self {
            Preset::Quick => Pace::QUICK,
            Preset::Cpu | Preset::Paper => Pace::STEADY,
            Preset::Field | Preset::Goals => Pace::BRIEF,
        }
    }

    /// The limits on its cases.
    pub fn scope(self) -> Scope {
        match self {
            Preset::Field => Scope {
                eager_bytes: 70e6,
                dense_burn_bytes: 0.3e9,
            },
            Preset::Goals => Scope::CAPTURED,
            Preset::Quick | Preset::Cpu | Preset::Paper => Scope::ALL,
        }
    }

    /// Returns whether buffers rotate, so that no call finds its cache in the processor's cache.
    pub fn rotates(self) -> bool {
        self != Preset::Quick
    }

    /// The shapes and settings.
    pub fn grid(self) -> Grid {
        let grid = Grid {
            shapes: vec![],
            dtypes: vec![CacheType::F16],
            sketches: vec![Sketch::Full, Sketch::Bits4],
            rows: vec![RowFormat::Float],
            groups: vec![Group::PAPER],
            budget: Budget::Fixed {
                rank: 32,
                top_k: 128,
            },
            sharing: None,
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
                    // At most 8.6 GB of K and V: with the sketch and a second buffer set, a third
                    // of a GPU with 80 GB.
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
                groups: vec![Group::PAPER, Group::ONE_QUERY],
                ..grid
            },
            Preset::Goals => Grid {
                shapes: GOALS.map(|goal| goal.shape).to_vec(),
                groups: vec![Group::PAPER, Group::ONE_QUERY],
                ..grid
            },
        }
    }
}

/// How the query heads of a group select positions and components together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    pub score: GroupScore,
    pub components: Components,
}

impl Group {
    /// The rules of the paper.
    pub const PAPER: Group = Group {
        score: GroupScore::Probabilities,
        components: Components::SumAbs,
    };
    /// The whole group scores as one query: one score per position instead of g.
    pub const ONE_QUERY: Group = Group {
        score: GroupScore::Logits,
        components: Components::AbsSum,
    };
}

/// How r and k are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// The same for every shape.
    Fixed { rank: usize, top_k: usize },
    /// By [`SparqConfig::for_compression`], for this share of the bytes of dense attention.
    Share(f64),
}

/// The product of shapes, element types and settings.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The shapes, in the order in which they run.
    pub shapes: Vec<Shape>,
    pub dtypes: Vec<CacheType>,
    pub sketches: Vec<Sketch>,
    /// Formats of K and V.
    pub rows: Vec<RowFormat>,
    /// Group rules. With g = 1 all rules are equal, and only the first is measured.
    pub groups: Vec<Group>,
    pub budget: Budget,
    /// See [`Case::sharing`].
    pub sharing: Option<usize>,
}

impl Grid {
    /// The cases, all valid.
    ///
    /// # Errors
    /// If a list is empty, or if settings do not fit a shape; the message names both.
    pub fn cases(&self) -> Result<Vec<Case>> {
        let (shapes, dtypes, rows) = (self.shapes.len(), self.dtypes.len(), self.rows.len());
        if [shapes, dtypes, self.sketches.len(), rows, self.groups.len()].contains(&0) {
            bail!(
                "expected at least one shape, dtype, sketch, row format and group rule, found none"
            );
        }
        let mut cases = Vec::new();
        for &shape in &self.shapes {
            let settings = self.settings(&shape)?;
            cases.extend(self.dtypes.iter().map(|&dtype| Case {
                shape,
                dtype,
                settings: settings.clone(),
                sharing: self.sharing,
            }));
        }
        Ok(cases)
    }

    fn settings(&self, shape: &Shape) -> Result<Vec<SparqConfig>> {
        let groups = match shape.group_size() {
            1 => &self.groups[..1],
            _ => &self.groups[..],
        };
        let mut all = Vec::new();
        let pairs = self.sketches.iter();
        let pairs = pairs.flat_map(|&sketch| self.rows.iter().map(move |&rows| (sketch, rows)));
        for (sketch, rows) in pairs {
            for group in groups {
                let with = |rank, top_k| {
                    SparqConfig::new(rank, top_k)
                        .with_sketch(sketch)
                        .with_rows(rows)
                        .with_group_score(group.score)
                        .with_components(group.components)
                };
                let (d, seq_len) = (shape.head_dim, shape.seq_len);
                let config = match self.budget {
                    Budget::Fixed { rank, top_k } => Ok(with(rank, top_k)),
                    Budget::Share(share) => with(1, 1).for_compression(d, seq_len, share),
                };
                let config = config
                    .and_then(|config| config.validate(d).map(|()| config))
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
    fn presets_have_valid_cases() {
        for preset in Preset::value_variants() {
            let cases = preset.grid().cases().unwrap();
            assert!(!cases.is_empty() && cases.iter().all(|case| case.settings.len() >= 2));
        }
    }

    #[test]
    fn preset_cpu_moves_an_eighth_of_the_bytes() {
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
    fn preset_group_rules_apply_to_groups_only() {
        let cases = Preset::Quick.grid().cases().unwrap();
        let count = |kv_heads| {
            let case = cases.iter().find(|case| case.shape.kv_heads == kv_heads);
            case.unwrap().settings.len()
        };
        assert_eq!((count(4), count(2)), (2, 4));
    }

    #[test]
    fn preset_errors_name_settings_and_shape() {
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
