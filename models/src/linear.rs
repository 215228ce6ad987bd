//! The memory layout of linear layers, and parts of them.

use std::ops::Range;

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::Tensor;
use sparq::LinearLayer;
use sparq::ops::is_output_major;

/// Makes a linear layer from a weight `[in_features, out_features]` and a bias `[out_features]`.
///
/// The weight is copied to the layout in which the device multiplies few rows fastest; see
/// [`is_output_major`]. So is a weight that a record loads into the layer later.
///
/// ```
/// use burn::tensor::{Device, Tensor};
///
/// let device = Device::default();
/// let layer = sparq_models::linear(Tensor::ones([2, 3], &device), None);
/// assert_eq!(layer.forward(Tensor::<2>::ones([1, 2], &device)).dims(), [1, 3]);
/// ```
pub fn linear(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Linear {
    from_laid_out(lay_out(weight), bias)
}

/// Makes a linear layer from a weight that already has the layout of the device.
pub(crate) fn from_laid_out(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Linear {
    Linear {
        weight: Param::from_tensor(weight).load_mapper(lay_out),
        bias: bias.map(Param::from_tensor),
    }
}

/// Makes a layer of some outputs of another: `ranges`, one after the other.
///
/// Its weights are no part of the other's history of gradients: training has to update them.
pub(crate) fn select_outputs(
    layer: &LinearLayer,
    ranges: impl Iterator<Item = Range<usize>> + Clone,
) -> LinearLayer {
    let select = |values: Tensor<2>| {
        let values = values.detach().set_require_grad(false);
        let parts = ranges.clone();
        let parts = parts.map(|range| values.clone().slice_dim(1, range));
        Tensor::cat(parts.collect(), 1)
    };
    let bias = layer.bias().map(|bias| {
        let bias = select(bias.unsqueeze());
        let outputs = bias.dims()[1];
        bias.reshape([outputs])
    });
    match layer {
        LinearLayer::Float(fused) => linear(select(fused.weight.val()), bias).into(),
        LinearLayer::Packed(fused) => {
            LinearLayer::packed(fused.weight.select_rows(ranges.flatten()), bias)
        }
    }
}

/// Copies a weight [in_features, out_features] to the layout of its device, if it differs.
fn lay_out(weight: Tensor<2>) -> Tensor<2> {
    let device = weight.device();
    if !is_output_major(&device) {
        return weight;
    }
    device.memory_persistent_allocations(weight, |weight| {
        let [inputs, outputs] = weight.dims();
        // Flattening forces the copy: a transposed view cannot be flattened in place.
        let stored = weight.transpose().reshape([inputs * outputs]);
        stored.reshape([outputs, inputs]).transpose()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Module;
    use burn::store::ModuleRecord;
    use burn::tensor::{Distribution, TensorData};

    fn product(layer: &Linear, x: &Tensor<2>) -> TensorData {
        layer.forward(x.clone()).into_data()
    }

    #[test]
    fn layout_changes_neither_products_nor_records() {
        for device in sparq_device::available() {
            let device = device.open();
            let random =
                |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, &device);
            let (weight, x) = (random([64, 48]), random([1, 64]));
            let bias = random([1, 48]).reshape([48]);
            let expected =
                (x.clone().matmul(weight.clone()) + bias.clone().unsqueeze()).into_data();
            let layer = linear(weight.clone(), Some(bias.clone()));
            product(&layer, &x).assert_approx_eq::<f32>(&expected, Default::default());
            weight
                .into_data()
                .assert_eq(&layer.weight.val().into_data(), true);

            let other = linear(
                Tensor::zeros([64, 48], &device),
                Some(Tensor::zeros([48], &device)),
            );
            let record: ModuleRecord = layer.into_record();
            let other = other.load_record(record);
            product(&other, &x).assert_approx_eq::<f32>(&expected, Default::default());
        }
    }
}
