//! Parts of a step alone: the attention of all layers, and the products with all matrices.

use std::cell::RefCell;

use anyhow::Result;
use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use sparq_models::Decoder as Llama;

use super::decoder::Decoder;
use super::model::RunShape;
use super::report::Parts;
use crate::contender::{Calls, Kept};
use crate::shape::CacheType;
use crate::stats::Summary;
use crate::timing::{self, Pace};

/// Times the parts, captured where the device is a GPU.
///
/// # Errors
/// When the device fails.
pub(super) fn measure(
    gpu: bool,
    device: &Device,
    decoder: Decoder<'_>,
    run: &RunShape,
    dtype: CacheType,
    pace: &Pace,
) -> Result<Parts> {
    let time = |calls: &Calls| -> Result<Summary> {
        match gpu {
            true => Ok(timing::captured(device, calls, 1, pace)?.0),
            false => timing::eager(device, calls, 1, pace),
        }
    };
    let linears = time(&products(decoder.model, run.batch, dtype, device))?;
    let attention = time(&attention(decoder, run, dtype, device))?;
    Ok(Parts { attention, linears })
}

/// The decode step of every layer's attention, on the caches as they are.
fn attention(decoder: Decoder<'_>, run: &RunShape, dtype: CacheType, device: &Device) -> Calls {
    let (heads, _, head_dim) = run.model.heads();
    let q = random([run.batch, heads, 1, head_dim], dtype, device);
    let method = decoder.method;
    let layers = RefCell::new(decoder.cache.layers);
    Box::new(move |_| {
        let mut last = None;
        for layer in layers.borrow_mut().iter_mut() {
            last = Some(
                method
                    .decode(q.clone(), layer)
                    .expect("a step with these caches has run before"),
            );
        }
        Kept::rest(last)
    })
}

/// The products of one vector for each sequence with every matrix of the model; of the embedding table a step reads a row.
fn products(model: &Llama, batch: usize, dtype: CacheType, device: &Device) -> Calls {
    let mut matrices = Matrices(Vec::new());
    model.visit(&mut matrices);
    // The first is the embedding table.
    let layers: Vec<(Linear, Tensor<3>)> = matrices
        .0
        .split_off(1)
        .into_iter()
        .map(|weight| {
            let x = random([batch, 1, weight.dims()[0]], dtype, device);
            let weight = Param::from_tensor(weight);
            (Linear { weight, bias: None }, x)
        })
        .collect();
    Box::new(move |_| {
        let mut last = None;
        for (linear, x) in &layers {
            last = Some(linear.forward(x.clone()));
        }
        Kept::rest(last)
    })
}

fn random<const D: usize>(shape: [usize; D], dtype: CacheType, device: &Device) -> Tensor<D> {
    let dtype = DType::from(FloatDType::from(dtype));
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), (device, dtype))
}

/// The matrices of a model in its order, sharing its buffers.
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
    use super::*;
    use crate::e2e::model::ModelShape;
    use sparq_models::CausalLm;

    #[test]
    fn the_products_are_those_with_every_matrix_but_the_table() {
        let device = sparq_device::available()[0].open();
        let shape = ModelShape::Tiny;
        let model = shape.build(CacheType::F32, &device).unwrap();
        let mut matrices = Matrices(Vec::new());
        model.visit(&mut matrices);
        let table = matrices.0.remove(0);
        assert_eq!(table.dims(), [model.vocab_size(), shape.hidden_size()]);
        assert_eq!(matrices.0.len(), 7 * shape.layers() + 1);
        let elements: usize = matrices
            .0
            .iter()
            .map(|matrix| matrix.shape().num_elements())
            .sum();
        assert_eq!((4 * elements) as f64, shape.weight_bytes(CacheType::F32));
    }
}
