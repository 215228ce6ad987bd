//! How the weights of linear layers lie in memory.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

/// A linear layer of a weight `[in_features, out_features]` and a bias `[out_features]`, the weight laid out as the device's products with few rows read it
/// fastest; what a record loads into the layer later is laid out the same.
///
/// ```
/// use burn::tensor::{Device, Tensor};
///
/// let device = Device::default();
/// let layer = sparq_models::linear(Tensor::ones([2, 3], &device), None);
/// assert_eq!(layer.forward(Tensor::<2>::ones([1, 2], &device)).dims(), [1, 3]);
/// ```
pub fn linear(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Linear {
    of_laid_out(lay_out(weight), bias)
}

/// The same of a weight that lies as it should.
pub(crate) fn of_laid_out(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Linear {
    Linear {
        weight: Param::from_tensor(weight).load_mapper(lay_out),
        bias: bias.map(Param::from_tensor),
    }
}

/// Whether the weights of an output lie together, as checkpoints store them: `[out_features, in_features]`, of which a layer holds the transposed view.
///
/// On GPUs a product with one row is a dot product for each output, which reads memory more than five times as fast so (measured on an H100). On CPUs a layer that is given one sequence would
/// copy the view in each step, at 10 to 20 times the cost of the product; there the rows of `[in_features, out_features]` are streamed in their own order.
pub(crate) fn outputs_lie_together(device: &Device) -> bool {
    sparq::ops::has_kernels(device)
}

/// weight [in_features, out_features], copied where it does not lie as the device wants it.
fn lay_out(weight: Tensor<2>) -> Tensor<2> {
    let device = weight.device();
    if !outputs_lie_together(&device) {
        return weight;
    }
    device.memory_persistent_allocations(weight, |weight| {
        let [inputs, outputs] = weight.dims();
        // In one dimension a view that is not contiguous can't stay one.
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
    fn the_layout_changes_no_product_and_records_hold_none() {
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
