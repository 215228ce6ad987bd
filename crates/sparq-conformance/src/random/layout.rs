//! Memory layouts of tensors.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

/// The memory layout of a tensor [B, H, T, d].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Contiguous.
    Plain,
    /// As a projection returns it: [B, T, H, d].
    HeadsInside,
    /// With contiguous positions: [B, H, d, T].
    Transposed,
    /// A slice of a larger tensor.
    Slice,
    /// Heads that share their memory.
    Broadcast,
}

impl Layout {
    pub(super) const ALL: [Layout; 5] = [
        Layout::Plain,
        Layout::HeadsInside,
        Layout::Transposed,
        Layout::Slice,
        Layout::Broadcast,
    ];

    /// Adapts `values` to the layout: if heads share memory, all get the values of the first.
    pub(super) fn adapt(self, values: &mut [f32], shape: [usize; 4]) {
        if self == Layout::Broadcast {
            let head = shape[2] * shape[3];
            for sequence in values.chunks_exact_mut(shape[1] * head) {
                for h in 1..shape[1] {
                    sequence.copy_within(0..head, h * head);
                }
            }
        }
    }

    /// Returns the tensor of `shape` with these row-major values, in `dtype`.
    pub(super) fn tensor(
        self,
        values: &[f32],
        shape: [usize; 4],
        dtype: FloatDType,
        device: &Device,
    ) -> Tensor<4> {
        let [b, h, t, d] = shape;
        let upload = |values: Vec<f32>, shape: [usize; 4]| {
            Tensor::<4>::from_data(TensorData::new(values, shape), (device, DType::F32)).cast(dtype)
        };
        let permuted = |shape: [usize; 4], from: fn([usize; 4]) -> [usize; 4]| -> Vec<f32> {
            let mut moved = Vec::with_capacity(values.len());
            for i in 0..shape[0] {
                for j in 0..shape[1] {
                    for k in 0..shape[2] {
                        for l in 0..shape[3] {
                            let [bi, hi, ti, di] = from([i, j, k, l]);
                            moved.push(values[((bi * h + hi) * t + ti) * d + di]);
                        }
                    }
                }
            }
            moved
        };
        match self {
            Layout::Plain => upload(values.to_vec(), shape),
            Layout::HeadsInside => {
                let shape = [b, t, h, d];
                upload(permuted(shape, |[b, t, h, d]| [b, h, t, d]), shape).swap_dims(1, 2)
            }
            Layout::Transposed => {
                let shape = [b, h, d, t];
                upload(permuted(shape, |[b, h, d, t]| [b, h, t, d]), shape).swap_dims(2, 3)
            }
            Layout::Slice => {
                let (wide, long) = (d + 3, t + 2);
                // Reading outside the slice would give NaN.
                let mut around = vec![f32::NAN; b * h * long * wide];
                for (index, part) in values.chunks_exact(d).enumerate() {
                    let at = (index / t * long + index % t + 1) * wide + 2;
                    around[at..][..d].copy_from_slice(part);
                }
                upload(around, [b, h, long, wide]).slice([0..b, 0..h, 1..t + 1, 2..d + 2])
            }
            Layout::Broadcast => {
                let heads = values.chunks_exact(t * d).step_by(h);
                upload(heads.flatten().copied().collect(), [b, 1, t, d]).expand(shape)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, FloatDType};

    use super::Layout;

    #[test]
    fn every_layout_holds_the_same_values() {
        let shape = [2, 3, 4, 5];
        let device = Device::default();
        for layout in Layout::ALL {
            let mut values: Vec<f32> = (0..120).map(|x| x as f32).collect();
            layout.adapt(&mut values, shape);
            let tensor = layout.tensor(&values, shape, FloatDType::F32, &device);
            assert_eq!(tensor.dims(), shape);
            let found: Vec<f32> = tensor.into_data().iter::<f32>().collect();
            assert_eq!(found, values, "{layout:?}");
        }
    }
}
