//! Opens burn devices by name, as far as this build and this machine have them.

#![deny(missing_docs)]

#[cfg(any(feature = "vulkan", feature = "wgpu", feature = "metal"))]
mod graphics;
pub mod kernel_cache;

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
#[cfg(any(feature = "vulkan", feature = "wgpu", feature = "metal"))]
use burn::tensor::wgpu::WgpuBackend;

/// A device, `None` if the machine has none with this index, or the reason why it cannot be used.
type Opened = Result<Option<Device>, String>;

/// One kind of device.
struct Kind {
    /// The name on the command line and of the cargo feature.
    name: &'static str,
    /// Whether the device has its own memory and runs kernels.
    gpu: bool,
    /// Opens the device with an index; `None` if the feature is off.
    open: Option<fn(usize) -> Opened>,
}

/// Compiles the constructor of a [`Kind`] only if its feature is on.
macro_rules! kind {
    ($name:literal, gpu: $gpu:literal, $open:expr) => {
        Kind {
            name: $name,
            gpu: $gpu,
            #[cfg(feature = $name)]
            open: Some($open),
            #[cfg(not(feature = $name))]
            open: None,
        }
    };
}

#[allow(
    deprecated,
    reason = "burn deprecates its backend ndarray, against which flex is checked"
)]
const KINDS: [Kind; 7] = [
    kind!("flex", gpu: false, |index| Ok((index == 0).then(Device::flex))),
    kind!("ndarray", gpu: false, |index| Ok((index == 0).then(Device::ndarray))),
    kind!("cuda", gpu: true, |index| Ok(present(Device::cuda(index)))),
    kind!("vulkan", gpu: true, |index| graphics::open(WgpuBackend::Vulkan, Device::vulkan, index)),
    kind!("wgpu", gpu: true, |index| graphics::open(WgpuBackend::Auto, Device::wgpu, index)),
    kind!("metal", gpu: true, |index| graphics::open(WgpuBackend::Metal, Device::metal, index)),
    kind!("rocm", gpu: true, |index| Ok(present(Device::rocm(index)))),
];

/// Returns the device if it can compute. A missing driver or adapter shows only at the first use of
/// a GPU, as a panic of its runtime.
#[cfg(any(
    feature = "cuda",
    feature = "vulkan",
    feature = "wgpu",
    feature = "metal",
    feature = "rocm"
))]
fn present(device: Device) -> Option<Device> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let answer = std::panic::catch_unwind(|| {
        let one = burn::tensor::Tensor::<1>::ones([1], &device);
        one.try_into_data().is_ok()
    });
    std::panic::set_hook(hook);
    matches!(answer, Ok(true)).then_some(device)
}

/// An available device, chosen by name and index, such as `flex` or `cuda:1`.
#[derive(Clone, Debug)]
pub struct DeviceChoice {
    name: String,
    device: Device,
    gpu: bool,
}

impl DeviceChoice {
    /// Returns the device.
    pub fn open(&self) -> Device {
        self.device.clone()
    }

    /// Returns whether the device has its own memory and runs kernels.
    pub fn is_gpu(&self) -> bool {
        self.gpu
    }

    /// Returns the name that the driver gives the GPU; `None` for a CPU device.
    pub fn gpu_name(&self) -> Option<String> {
        #[cfg(any(
            feature = "cuda",
            feature = "vulkan",
            feature = "wgpu",
            feature = "metal",
            feature = "rocm"
        ))]
        if self.gpu {
            return self.device.identity().map(|identity| identity.name);
        }
        None
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = text.split_once(':').unwrap_or((text, "0"));
        let index: usize = index
            .parse()
            .map_err(|_| format!("expected NAME or NAME:INDEX, found the index {index:?}"))?;
        let Some(kind) = KINDS.iter().find(|kind| kind.name == name) else {
            let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
            return Err(format!(
                "expected one of {}, found {name:?}",
                names.join(", ")
            ));
        };
        let Some(open) = kind.open else {
            return Err(format!(
                "this build has the devices {}; expected one of them, found {name:?}; \
                 rebuild with --features {name}",
                built_in().join(", ")
            ));
        };
        match open(index)? {
            Some(device) => Ok(Self {
                name: text.to_owned(),
                device,
                gpu: kind.gpu,
            }),
            None if index == 0 => Err(format!("this machine has no usable {name} device")),
            None => Err(format!("{name} has no device {index}; expected {name}:0")),
        }
    }
}

/// Returns the names of the devices whose features this build has.
pub fn built_in() -> Vec<&'static str> {
    KINDS
        .iter()
        .filter(|kind| kind.open.is_some())
        .map(|kind| kind.name)
        .collect()
}

/// Returns the first device of every kind that is built in and that this machine has.
pub fn available() -> Vec<DeviceChoice> {
    built_in()
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect()
}

/// Returns the devices to test: the one that `BURN_DEVICE` names, or else all that are
/// [available].
///
/// # Errors
/// If the named device is not available.
pub fn for_tests() -> Result<Vec<DeviceChoice>, String> {
    match std::env::var("BURN_DEVICE") {
        Ok(name) => Ok(vec![name.parse()?]),
        Err(_) => Ok(available()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_error_names_the_missing_feature() {
        assert!(!available().is_empty());
        let Some(kind) = KINDS.iter().find(|kind| kind.open.is_none()) else {
            return;
        };
        let error = kind.name.parse::<DeviceChoice>().unwrap_err();
        let advice = format!("--features {}", kind.name);
        assert!(error.contains(&advice), "{error}");
        assert!(error.contains(built_in()[0]), "{error}");
    }

    #[test]
    fn device_index_must_exist() {
        let choice = |index: &str| format!("{}:{index}", built_in()[0]).parse::<DeviceChoice>();
        assert!(choice("0").is_ok());
        assert!(choice("1").unwrap_err().contains("no device 1"));
        assert!(choice("x").unwrap_err().contains("index"));
    }
}
