//! Known GPUs by name.

use serde::Serialize;

/// The figures of a GPU from its data sheet.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gpu {
    /// A part of the name that the device reports.
    pub name: &'static str,
    /// Memory bandwidth, in 10^9 bytes per second.
    pub gb_per_s: f64,
    /// Memory, in 10^9 bytes.
    pub memory_gb: f64,
    /// Dense 16-bit matrix products with fp32 sums, in 10^12 operations per second.
    pub tflops: f64,
}

impl Gpu {
    const fn new(name: &'static str, gb_per_s: f64, memory_gb: f64, tflops: f64) -> Self {
        Self {
            name,
            gb_per_s,
            memory_gb,
            tflops,
        }
    }

    /// Every known GPU. A name is looked up from top to bottom, so more specific names come first.
    pub const ALL: [Gpu; 16] = [
        Gpu::new("B200", 8000.0, 180.0, 2250.0),
        Gpu::new("H200", 4800.0, 141.0, 989.0),
        Gpu::new("H100 NVL", 3900.0, 94.0, 835.0),
        Gpu::new("H100 PCIe", 2000.0, 80.0, 756.0),
        Gpu::new("H100", 3350.0, 80.0, 989.0),
        Gpu::new("A100-SXM4-80GB", 2039.0, 80.0, 312.0),
        Gpu::new("A100", 1555.0, 40.0, 312.0),
        Gpu::new("L40", 864.0, 48.0, 181.0),
        Gpu::new("A10", 600.0, 24.0, 125.0),
        Gpu::new("L4", 300.0, 24.0, 121.0),
        Gpu::new("T4", 320.0, 16.0, 65.0),
        Gpu::new("RTX 5090", 1792.0, 32.0, 209.0),
        Gpu::new("RTX 4090", 1008.0, 24.0, 165.0),
        Gpu::new("RTX 3090", 936.0, 24.0, 71.0),
        Gpu::new("MI300X", 5300.0, 192.0, 1307.0),
        Gpu::new("RX 7900 XTX", 960.0, 24.0, 123.0),
    ];

    /// Returns the GPU whose name is a part of this one, ignoring case.
    ///
    /// ```
    /// use sparq::cost::Gpu;
    ///
    /// assert_eq!(Gpu::named("NVIDIA H100 80GB HBM3").unwrap().gb_per_s, 3350.0);
    /// assert!(Gpu::named("an unknown card").is_none());
    /// ```
    pub fn named(name: &str) -> Option<&'static Gpu> {
        let name = name.to_lowercase();
        const { &Self::ALL }
            .iter()
            .find(|gpu| name.contains(&gpu.name.to_lowercase()))
    }
}

/// The share of the data sheet's bandwidth that a copy reaches: 3020 of 3350 GB/s on an H100.
pub const REACHED: f64 = 0.9;
