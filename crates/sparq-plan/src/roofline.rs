//! The arithmetic and the bytes of a step: [`Work`].

use serde::Serialize;
use sparq::Method;
use sparq::cost::CacheShape;

use crate::{Machine, Setup};

/// The arithmetic and the bytes of a step, on one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Work {
    /// The number of multiplications and additions.
    pub flops: f64,
    /// Bytes of weights and caches to move.
    pub bytes: f64,
}

impl Work {
    /// Operations per byte.
    pub fn intensity(&self) -> f64 {
        self.flops / self.bytes
    }

    /// The rate a machine can reach at this intensity in 10^12 operations per second, bound by its
    /// bandwidth or its arithmetic.
    pub fn attainable_tflops(&self, machine: &Machine) -> f64 {
        let fed = self.intensity() * machine.gb_per_s / 1e3;
        machine.tflops.map_or(fed, |tflops| fed.min(tflops))
    }

    /// The floor: the least time of the step on a machine, in microseconds.
    pub fn floor_us(&self, machine: &Machine) -> f64 {
        self.flops / self.attainable_tflops(machine) / 1e6
    }
}

impl Setup {
    /// The work of a step of `batch` sequences with `seq_len` positions each: products with all
    /// matrices, and attention.
    ///
    /// ```
    /// use sparq::Method;
    /// use sparq_plan::{Machine, ModelShape, Setup};
    ///
    /// let model = ModelShape {
    ///     layers: 32, hidden_size: 4096, heads: 32, kv_heads: 32, head_dim: 128,
    ///     parameters: 6_738_415_616, read_parameters: 6_607_343_616,
    ///     sliding_window: None, sliding_layers: 0,
    /// };
    /// let setup = Setup::new(model, Machine::find("A100")?, 2);
    /// // One operation per byte: a decode step is far from the arithmetic limit of any GPU.
    /// assert!((setup.work(&Method::DENSE, 1, 4096).intensity() - 1.0).abs() < 0.01);
    /// # Ok::<(), sparq_plan::MachineError>(())
    /// ```
    pub fn work(&self, method: &Method, batch: usize, seq_len: usize) -> Work {
        let Self { model, gpus, .. } = self;
        let attention = |(layers, attended): (usize, usize)| {
            layers as f64 * self.attention_flops(method, batch, attended)
        };
        let products = (2 * batch) as f64 * model.read_parameters as f64;
        let attention: f64 = model.layers_at(seq_len).into_iter().map(attention).sum();
        let weights = (model.read_parameters * self.element_bytes) as f64;
        let cache = model.step_bytes(method, batch, seq_len, self.element_bytes);
        let gpus = *gpus as f64;
        Work {
            flops: (products + attention) / gpus,
            bytes: (weights + cache) / gpus,
        }
    }

    /// The operations of attention in one layer: a multiplication and an addition per element of
    /// the cache and query head that reads it.
    fn attention_flops(&self, method: &Method, batch: usize, seq_len: usize) -> f64 {
        let shape = CacheShape {
            head_dim: self.model.head_dim,
            kv_heads: batch * self.model.heads,
            layers: self.model.layers,
            element_bytes: self.element_bytes,
        };
        2.0 * method.transfers(&shape, seq_len).elements as f64
    }
}

#[cfg(test)]
mod tests {
    use sparq::SparqConfig;

    use super::*;
    use crate::ModelShape;

    fn setup() -> Setup {
        Setup::new(ModelShape::example(), Machine::find("H100").unwrap(), 2)
    }

    #[test]
    fn work_matches_a_calculation_by_hand() {
        let work = setup().work(&Method::DENSE, 3, 100);
        let flops = 3 * (2 * 1_000_000 + 2 * 10 * 8 * (2 * 64 * 100 + 2 * 64));
        assert_eq!(work.flops, flops as f64);
        let bytes = 2 * (1_000_000 + 3 * 10 * 4 * 64 * (2 * 100 + 2));
        assert_eq!(work.bytes, bytes as f64);
        let sparq = setup().work(&SparqConfig::new(8, 10).into(), 3, 100);
        let flops = 3 * (2 * 1_000_000 + 2 * 10 * 8 * (8 * 100 + 2 * 64 * 10 + 4 * 64));
        assert_eq!(sparq.flops, flops as f64);
    }

    #[test]
    fn work_is_bound_by_bandwidth_or_arithmetic() {
        let machine = Machine::find("H100").unwrap();
        let work = |flops| Work { flops, bytes: 1e6 };
        assert!((work(2e6).attainable_tflops(&machine) - 2.0 * 3.015).abs() < 1e-9);
        assert_eq!(work(1e12).attainable_tflops(&machine), 989.0);
        // A step bound by bandwidth takes the time of its bytes.
        assert!((work(2e6).floor_us(&machine) - 1e6 / 3015.0 / 1e3).abs() < 1e-9);
    }
}
