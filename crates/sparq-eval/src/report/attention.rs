//! [`AttentionRecord`]: the attention of one KV head by position, and the positions that methods
//! read.

use burn::tensor::{FloatDType, Int, Tensor, TensorData, activation::softmax};
use serde::{Deserialize, Serialize};
use sparq::cost::CacheShape;
use sparq::{KvCache, Method, SparqError};
use sparq_models::{CausalLm, ModelCache};
use sparq_output::charts::{PositionPlot, Row};
use sparq_output::numbers;
use sparq_output::table::{Cell, Table};

use super::figures::{Figure, Picture};
use super::palette::Palette;
use crate::method::transfer_share;

/// The version of the format of an [`AttentionRecord`].
pub const FORMAT: u32 = 1;

/// The kind of a line of a results file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Recorded attention.
    Attention,
}

/// The attention of the last token of a text in one layer and KV head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionRecord {
    /// The kind of the line.
    pub kind: Kind,
    /// The version of the format.
    pub format: u32,
    /// The model.
    pub model: String,
    /// The layer, from 0.
    pub layer: usize,
    /// The KV head, from 0.
    pub kv_head: usize,
    /// The exact probability of each position, averaged over the query heads of the group.
    pub mass: Vec<f32>,
    /// The positions that each method reads.
    pub choices: Vec<Choice>,
}

/// The positions that a method reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// The method, spelled as on the command line.
    pub method: String,
    /// The method with its settings.
    pub settings: Method,
    /// The share of dense attention's bytes that the method moves, on a 16-bit cache.
    pub transfer: f64,
    /// The positions in ascending order.
    pub positions: Vec<usize>,
}

/// Decodes `token` with dense attention and records the attention of one KV head of a layer: the
/// exact probabilities of its query heads, and the positions that each method reads for the same
/// queries.
///
/// `cache` comes from [`CausalLm::new_shared_cache`] for all `methods`.
///
/// # Errors
/// If the layer or head does not exist, the model refuses the token, the settings of a method do
/// not fit, or a method does not reveal the positions it reads.
pub fn trace(
    model: &dyn CausalLm,
    cache: &ModelCache,
    token: u32,
    (layer, kv_head): (usize, usize),
    methods: &[(String, Method)],
    name: &str,
) -> Result<AttentionRecord, SparqError> {
    let layers = cache.layers.len();
    let kv_heads = cache
        .layers
        .first()
        .map_or(0, |layer| layer.config().kv_heads);
    for (what, found, count) in [("layer", layer, layers), ("KV head", kv_head, kv_heads)] {
        if found >= count {
            return Err(SparqError::Value {
                what,
                expected: format!("less than {count}"),
                found: found.to_string(),
            });
        }
    }
    let (q, exact) = read_token(model, cache, token, layer, &Method::DENSE)?;
    let group = q.dims()[1] / kv_heads;
    let first = attended_from(&exact);
    let mass = mass(&q, &exact, kv_head, group)?;
    let choose = |(label, method): &(String, Method)| {
        let (q, mut cache) = read_token(model, cache, token, layer, method)?;
        let mut positions = positions(&q, &mut cache, method, kv_head, &mass)?;
        positions.retain(|&at| at >= first);
        positions.sort_unstable();
        let shape = CacheShape {
            head_dim: cache.config().head_dim,
            kv_heads: 1,
            layers: 1,
            element_bytes: 2,
        };
        Ok(Choice {
            method: label.clone(),
            settings: *method,
            transfer: transfer_share(method, &shape, cache.len() - first),
            positions,
        })
    };
    let choices: Result<_, SparqError> = methods.iter().map(choose).collect();
    Ok(AttentionRecord {
        kind: Kind::Attention,
        format: FORMAT,
        model: name.to_owned(),
        layer,
        kv_head,
        mass,
        choices: choices?,
    })
}

/// Decodes the token densely on a copy of the cache for `method`. Returns the query and the cache
/// of the layer.
fn read_token(
    model: &dyn CausalLm,
    cache: &ModelCache,
    token: u32,
    layer: usize,
    method: &Method,
) -> Result<(Tensor<4>, KvCache), SparqError> {
    let mut cache = cache.for_method(method)?;
    cache.layers[layer].keep_query(true);
    let token = TensorData::new(vec![i64::from(token)], [1, 1]);
    let token = Tensor::<2, Int>::from_data(token, &model.device());
    model.decode(token, &mut cache, &Method::DENSE)?;
    let cache = cache.layers.swap_remove(layer);
    let query = cache.query().cloned();
    let query = query.ok_or_else(|| SparqError::Value {
        what: "model",
        expected: "a model that attends through `Method`".into(),
        found: "another model".into(),
    })?;
    Ok((query, cache))
}

/// Returns the first position inside the sliding window.
fn attended_from(cache: &KvCache) -> usize {
    let window = cache.config().window.unwrap_or(cache.len());
    cache.len().saturating_sub(window)
}

/// Returns the exact probability of every position, averaged over the query heads of a group.
fn mass(
    q: &Tensor<4>,
    cache: &KvCache,
    kv_head: usize,
    group: usize,
) -> Result<Vec<f32>, SparqError> {
    let [_, _, _, d] = q.dims();
    let first = attended_from(cache);
    let keys = cache.tensors().k.at(first..cache.len());
    let keys = keys.slice_dim(1, kv_head..kv_head + 1);
    let q = q
        .clone()
        .slice_dim(1, kv_head * group..(kv_head + 1) * group);
    // [1, g, 1, d] against [1, 1, S, d].
    let logits = q
        .cast(FloatDType::F32)
        .swap_dims(1, 2)
        .matmul(keys.cast(FloatDType::F32).transpose());
    let mut logits = logits / (d as f32).sqrt();
    if let Some(bound) = cache.config().softcap {
        logits = (logits / bound).tanh() * bound;
    }
    let mean = softmax(logits, 3).mean_dim(2);
    let mean = mean.try_into_vec_as::<f32>().map_err(device)?;
    let hidden = std::iter::repeat_n(0.0, first);
    Ok(hidden.chain(mean).collect())
}

/// Returns the positions that a method reads for a query.
fn positions(
    q: &Tensor<4>,
    cache: &mut KvCache,
    method: &Method,
    kv_head: usize,
    mass: &[f32],
) -> Result<Vec<usize>, SparqError> {
    let (first, len) = (attended_from(cache), cache.len());
    if !method.is_sparse(cache.config(), len) {
        return Ok((first..len).collect());
    }
    match method {
        Method::Sparq(config) => {
            let positions = config.decode_traced(q.clone(), cache)?.positions;
            let of_head = positions.slice_dim(1, kv_head..kv_head + 1);
            let of_head = of_head.try_into_vec_as::<i64>().map_err(device)?;
            Ok(of_head
                .into_iter()
                .filter_map(|at| usize::try_from(at).ok())
                .collect())
        }
        Method::LmInfinite(method) => {
            let latest = len - (method.top_k - method.first);
            Ok((first..first + method.first).chain(latest..len).collect())
        }
        Method::Oracle(sparq::methods::baselines::Oracle { top_k })
        | Method::FlexGen(sparq::methods::baselines::FlexGen { top_k }) => {
            let mut order: Vec<usize> = (first..len).collect();
            order.sort_by(|&a, &b| mass[b].total_cmp(&mass[a]));
            order.truncate(*top_k);
            Ok(order)
        }
        Method::H2o(_) => {
            method.decode(q.clone(), cache)?;
            let received = cache
                .received_attention()
                .expect("H2O keeps the received attention");
            let received = received.slice_dim(1, kv_head..kv_head + 1);
            let received = received.try_into_vec_as::<f32>().map_err(device)?;
            let kept = received
                .iter()
                .enumerate()
                .filter(|(_, sum)| sum.is_finite());
            Ok(kept.map(|(at, _)| at).collect())
        }
        other => Err(SparqError::Value {
            what: "method",
            expected: "a method that reveals the positions it reads".into(),
            found: other.name().into(),
        }),
    }
}

fn device(error: impl std::fmt::Display) -> SparqError {
    SparqError::Value {
        what: "device",
        expected: "results".into(),
        found: error.to_string(),
    }
}

impl AttentionRecord {
    /// Checks that the positions are within the text. Returns a message if not.
    pub(super) fn check(&self) -> Result<(), String> {
        let len = self.mass.len();
        if len == 0 {
            return Err("mass: expected at least one position, found none".into());
        }
        let positions = self.choices.iter().flat_map(|choice| &choice.positions);
        match positions.into_iter().find(|&&at| at >= len) {
            Some(at) => Err(format!("positions: expected less than {len}, found {at}")),
            None => Ok(()),
        }
    }

    /// Returns the share of the attention probability on the positions of a method.
    pub fn kept(&self, choice: &Choice) -> f64 {
        let shares = choice.positions.iter().filter_map(|&at| self.mass.get(at));
        shares.copied().map(f64::from).sum()
    }

    pub(super) fn figure(&self, palette: &Palette) -> Figure {
        let row = |choice: &Choice| Row {
            label: format!(
                "{}: {} of {} positions, {} of the probability",
                choice.method,
                choice.positions.len(),
                self.mass.len(),
                numbers::percent(self.kept(choice))
            ),
            positions: choice.positions.clone(),
            paint: palette.style(&choice.method).0,
        };
        let title = format!(
            "Layer {}, KV head {} of {}",
            self.layer, self.kv_head, self.model
        );
        Figure {
            name: format!("attention-layer-{}-head-{}", self.layer, self.kv_head),
            caption: String::new(),
            picture: Picture::Positions(PositionPlot {
                title: title.clone(),
                y_label: "probability".into(),
                mass: self.mass.iter().copied().map(f64::from).collect(),
                rows: self.choices.iter().map(row).collect(),
            }),
            title,
        }
    }

    pub(super) fn table(&self) -> Table {
        let count = |count: usize| Cell::number(count.to_string(), count as f64);
        let share = |share: f64| Cell::number(numbers::percent(share), share);
        let cells = |choice: &Choice| {
            vec![
                choice.settings.to_string().into(),
                count(self.layer),
                count(self.kv_head),
                count(choice.positions.len()),
                share(choice.transfer),
                share(self.kept(choice)),
            ]
        };
        let headings = [
            "method",
            "layer",
            "head",
            "positions",
            "moved",
            "probability kept",
        ];
        Table {
            headings: headings.map(str::to_owned).into(),
            rows: self.choices.iter().map(cells).collect(),
        }
    }
}
