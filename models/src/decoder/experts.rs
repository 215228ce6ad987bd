//! The mixture of experts of a layer: [`ExpertsMlp`].

use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{FloatDType, IndexingUpdateOp, Int, Tensor};
use sparq::LinearLayer;
use sparq::ops::{Norm, Projections, decode_linear, normalize};

use super::mlp::Mlp;
use super::{DecoderConfig, ExpertKeys, Experts};
use crate::checkpoint::CheckpointError;
use crate::weights::Weights;

/// MLPs of which the router chooses a few for each position. The output is the sum of theirs, each
/// times the probability that the router gives it.
///
/// The host reads which experts are chosen, and computes no others: each reads its weights once for
/// all positions that chose it. A step therefore waits for the device in every layer, and cannot be
/// captured.
#[derive(Module, Debug)]
pub(super) struct ExpertsMlp {
    router: LinearLayer,
    experts: Vec<Mlp>,
    per_token: usize,
    #[module(skip)]
    renormalize: bool,
}

impl ExpertsMlp {
    /// Builds the experts of the layer `prefix`.
    pub(super) fn build(
        weights: &impl Weights,
        config: &DecoderConfig,
        (keys, sizes): (&ExpertKeys, &Experts),
        prefix: &str,
    ) -> Result<Self, CheckpointError> {
        let expert = |index: usize| {
            let prefix = format!("{prefix}.{}.{index}", keys.list);
            Mlp::build_with(
                weights,
                config,
                (keys.mlp, sizes.intermediate_size),
                &prefix,
            )
        };
        let router = format!("{prefix}.{}", keys.router);
        Ok(Self {
            router: weights.linear(&router, config.hidden_size, sizes.count, false)?,
            experts: (0..sizes.count).map(expert).collect::<Result<_, _>>()?,
            per_token: sizes.per_token,
            renormalize: sizes.renormalize,
        })
    }

    /// Maps x [B, T, D] to residual + experts(norm(x)), [B, T, D].
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        norm: Norm,
        residual: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let [batch, len, width] = x.dims();
        let matrix = |x: Tensor<3>| x.reshape([batch * len, width]);
        let x = normalize(matrix(x), norm);
        let (weights, chosen) = self.route(&x);
        let mut y = residual.map_or_else(|| x.zeros_like(), matrix);
        for (expert, slots) in self.experts.iter().zip(&self.slots(&chosen)) {
            if slots.is_empty() {
                continue;
            }
            if batch * len == 1 {
                let weight = weights.clone().slice_dim(0, slots[0]..slots[0] + 1);
                y = expert.weighted(x.clone(), weight, Some(y));
                continue;
            }
            let index =
                |values: Vec<i64>| Tensor::<1, Int>::from_ints(values.as_slice(), &x.device());
            let of_slots = index(slots.iter().map(|&slot| slot as i64).collect());
            let weight = weights.clone().select(0, of_slots);
            let rows = slots.iter().map(|&slot| (slot / self.per_token) as i64);
            let rows = index(rows.collect());
            let part = expert.weighted(x.clone().select(0, rows.clone()), weight, None);
            y = y.select_assign(0, rows, part, IndexingUpdateOp::Add);
        }
        y.reshape([batch, len, width])
    }

    /// Chooses the experts of each row of x [N, D].
    ///
    /// Row n has the slots n k .. (n + 1) k for its k experts. Returns the probability of each
    /// slot, [N k, 1] in x's type, and its expert, [N k].
    fn route(&self, x: &Tensor<2>) -> (Tensor<2>, Vec<usize>) {
        let projection = Projections::One((&self.router).into());
        let scores = decode_linear(x.clone(), Norm::None, projection, None);
        let probabilities = softmax(scores.cast(FloatDType::F32), 1);
        let best = probabilities.clone();
        let (_, chosen) = best.topk_with_indices(self.per_token, 1);
        let mut weights = probabilities.gather(1, chosen.clone());
        if self.renormalize {
            weights = weights.clone() / weights.sum_dim(1);
        }
        let slots = x.dims()[0] * self.per_token;
        let weights = weights
            .cast(FloatDType::from(x.dtype()))
            .reshape([slots, 1]);
        let chosen = chosen.into_data();
        (
            weights,
            chosen.iter::<i64>().map(|expert| expert as usize).collect(),
        )
    }

    /// Returns the slots of each expert, ascending.
    fn slots(&self, chosen: &[usize]) -> Vec<Vec<usize>> {
        let mut slots = vec![Vec::new(); self.experts.len()];
        for (slot, &expert) in chosen.iter().enumerate() {
            slots[expert].push(slot);
        }
        slots
    }
}
