//! The memory of a device, and whether a model fits: [`MemoryArgs`].

use anyhow::{Result, bail};
use burn::tensor::FloatDType;
use clap::Args;
use sparq_device::DeviceChoice;
use sparq_measure::host::available_memory;
use sparq_output::numbers::binary_bytes;
use sparq_plan::Demand;

use crate::args::{dtype_name, positive};

/// The memory that a model may take.
#[derive(Args, Clone, Copy, Debug)]
pub struct MemoryArgs {
    /// Memory for weights, cache and activations, in 10^9 bytes. A model that needs more is refused
    /// before it is loaded [default: all memory of a GPU of CUDA or ROCm, the available memory on
    /// CPUs, else unlimited]
    #[arg(long, value_parser = positive, value_name = "GB")]
    memory_gb: Option<f64>,
}

impl MemoryArgs {
    /// Checks that a model in `dtype` fits into the memory of the device.
    ///
    /// # Errors
    /// If it does not. The message has the parts of the memory and the positions that would fit.
    pub fn check(&self, demand: &Demand, dtype: FloatDType, device: &DeviceChoice) -> Result<()> {
        let (available, place) = match self.memory_gb {
            Some(gb) => (Some(gb * 1e9), "--memory-gb".to_owned()),
            None => (of_device(device), format!("the memory of {device}")),
        };
        match available {
            Some(available) if demand.memory().total() > available => {
                bail!("{}", refusal(demand, dtype, available, &place))
            }
            _ => Ok(()),
        }
    }
}

/// Returns the bytes that a model may take on a device, if the device tells.
pub fn of_device(device: &DeviceChoice) -> Option<f64> {
    let bytes = match device.is_gpu() {
        true => sparq::ops::memory_bytes(&device.open()),
        false => available_memory(),
    };
    bytes.map(|bytes| bytes as f64)
}

/// Returns the message for a model that needs more than `available` bytes.
fn refusal(demand: &Demand, dtype: FloatDType, available: f64, place: &str) -> String {
    let memory = demand.memory();
    let advice = match demand.positions_in(available) {
        Some(positions) => format!("{positions} positions would fit"),
        None if memory.weights > available => "the weights alone do not fit".to_owned(),
        None => "not even one position would fit".to_owned(),
    };
    let [total, available, weights, cache, activations] = [
        memory.total(),
        available,
        memory.weights,
        memory.cache,
        memory.activations,
    ]
    .map(binary_bytes);
    format!(
        "{place}: expected at least {total} for this model, found {available}: it needs {weights} \
         for weights in {}, {cache} for a cache of {} positions, and {activations} for a prefill \
         of {} tokens at a time; {advice}",
        dtype_name(dtype),
        demand.positions(),
        demand.tokens_per_pass(),
    )
}
