//! The parts of a step, timed separately: attention of all layers, and products with all matrices.

use std::cell::RefCell;

use anyhow::Result;
use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use sparq::ops::{Norm, Projections, decode_linear};
use sparq_models::Decoder;

use super::Setup;
use super::filled::FilledModel;
use super::name::RunShape;
use super::record::Parts;
use crate::calls::{Calls, Kept};
use crate::shape::CacheType;
use crate::stats::Summary;
use crate::timing;

/// Times the parts, captured if the device is a GPU.
pub(super) fn measure(
    setup: &Setup,
    device: &Device,
    filled: FilledModel<'_>,
    run: &RunShape,
) -> Result<Parts> {
    let time = |calls: &Calls| -> Result<Summary> {
        match setup.device.is_gpu() {
            true => Ok(timing::captured(device, calls, 1, &setup.pace)?.0),
            false => timing::eager(device, calls, 1, &setup.pace),
        }
    };
    let linears = time(&products(filled.model, run, setup.dtype, device))?;
    let attention = time(&attention(filled, run, setup.dtype, device))?;
    Ok(Parts { attention, linears })
}

/// Calls of the attention of every layer, on the caches as they are.
fn attention(filled: FilledModel<'_>, run: &RunShape, dtype: CacheType, device: &Device) -> Calls {
    let config = run.model.config();
    let shape = [run.batch, config.num_attention_heads, 1, config.head_dim];
    let q = random(shape, dtype, device);
    let method = filled.method;
    let layers = RefCell::new(filled.cache.layers);
    Box::new(move |_| {
        let mut last = None;
        for layer in layers.borrow_mut().iter_mut() {
            let output = method.decode(q.clone(), layer);
            last = Some(output.expect("a step with these caches succeeded before"));
        }
        Kept::rest(last)
    })
}

/// Calls of the products of one vector per sequence with every matrix of the model, except an
/// embedding table of which a step reads one row per sequence.
fn products(model: &Decoder, run: &RunShape, dtype: CacheType, device: &Device) -> Calls {
    let mut matrices = Matrices(Vec::new());
    model.visit(&mut matrices);
    // The first matrix is the embedding table, which may be the head too.
    let table = matrices.0.remove(0);
    if run.model.config().tie_word_embeddings {
        matrices.0.push(table.transpose());
    }
    let layers: Vec<(Linear, Tensor<2>)> = matrices
        .0
        .into_iter()
        .map(|weight| {
            let x = random([run.batch, weight.dims()[0]], dtype, device);
            let weight = Param::from_tensor(weight);
            (Linear { weight, bias: None }, x)
        })
        .collect();
    Box::new(move |_| {
        let mut last = None;
        for (linear, x) in &layers {
            let projection = Projections::One(linear.into());
            last = Some(decode_linear(x.clone(), Norm::None, projection, None));
        }
        Kept::rest(last)
    })
}

fn random<const D: usize>(shape: [usize; D], dtype: CacheType, device: &Device) -> Tensor<D> {
    let dtype = DType::from(FloatDType::from(dtype));
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), (device, dtype))
}

/// The matrices of a model in order, sharing its buffers.
struct Matrices(Vec<Tensor<2>>);

impl ModuleVisitor for Matrices {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let [rows, columns] = param.dims()[..] {
            self.0.push(param.val().reshape([rows, columns]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::name::ModelName;
    use super::*;
    use sparq_models::CausalLm;

    #[test]
    fn parts_use_every_matrix_except_the_embedding() {
        let device = sparq_device::available()[0].open();
        let name = ModelName::Tiny;
        let (config, model) = (
            name.config(),
            name.build(CacheType::F32, None, &device).unwrap(),
        );
        let mut matrices = Matrices(Vec::new());
        model.visit(&mut matrices);
        let table = matrices.0.remove(0);
        assert_eq!(table.dims(), [model.vocab_size(), config.hidden_size]);
        assert_eq!(matrices.0.len(), 7 * config.num_hidden_layers + 1);
        let elements = matrices
            .0
            .iter()
            .map(|matrix| matrix.shape().num_elements());
        let bytes = 4 * elements.sum::<usize>();
        assert_eq!(bytes as f64, name.weight_bytes(CacheType::F32));
    }
}
