//! The devices that a user can name, and which of them this build and this machine have.

#![deny(missing_docs)]

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

/// Makes the device with this index.
type Open = fn(usize) -> Option<Device>;

/// A row of the table of devices.
struct Kind {
    /// The name on the command line, and of the cargo feature.
    name: &'static str,
    /// Whether it has memory and launches of its own.
    gpu: bool,
    /// `None` where the feature is off.
    open: Option<Open>,
}

/// A row: the constructor is compiled where the feature is on.
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

/// The default adapter for index 0, and otherwise that one of the discrete GPUs.
#[cfg(any(feature = "vulkan", feature = "wgpu", feature = "metal"))]
fn adapter(index: usize) -> burn::tensor::DeviceKind {
    match index {
        0 => burn::tensor::DeviceKind::DefaultDevice,
        _ => burn::tensor::DeviceKind::DiscreteGpu(index),
    }
}

#[allow(
    deprecated,
    reason = "burn marks its oldest backend, ndarray, as deprecated; it stays the second opinion on flex"
)]
const KINDS: [Kind; 7] = [
    kind!("flex", gpu: false, |index| (index == 0).then(Device::flex)),
    kind!("ndarray", gpu: false, |index| (index == 0).then(Device::ndarray)),
    kind!("cuda", gpu: true, |index| present(Device::cuda(index))),
    kind!("vulkan", gpu: true, |index| present(Device::vulkan(adapter(index)))),
    kind!("wgpu", gpu: true, |index| present(Device::wgpu(adapter(index)))),
    kind!("metal", gpu: true, |index| present(Device::metal(adapter(index)))),
    kind!("rocm", gpu: true, |index| present(Device::rocm(index))),
];

/// The device, if it answers. A missing driver or adapter shows only when a GPU is first used, and then as a panic of its runtime.
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

/// A device by name and index that this build has, such as `flex` or `cuda:1`.
#[derive(Clone, Debug)]
pub struct DeviceChoice {
    name: String,
    device: Device,
    gpu: bool,
}

impl DeviceChoice {
    /// The device.
    pub fn open(&self) -> Device {
        self.device.clone()
    }

    /// Whether it is a GPU, with memory and launches of its own.
    pub fn is_gpu(&self) -> bool {
        self.gpu
    }

    /// The name that the GPU gives itself.
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
                "this build has: {}; expected one of them, found {name:?}; rebuild with --features {name}",
                built_in().join(", ")
            ));
        };
        match open(index) {
            Some(device) => Ok(Self {
                name: text.to_owned(),
                device,
                gpu: kind.gpu,
            }),
            None if index == 0 => Err(format!("no {name} device answers on this machine")),
            None => Err(format!("{name} has no device {index}; expected {name}:0")),
        }
    }
}

/// The names of the devices that this build has.
pub fn built_in() -> Vec<&'static str> {
    KINDS
        .iter()
        .filter(|kind| kind.open.is_some())
        .map(|kind| kind.name)
        .collect()
}

/// The first device of every kind that this build has and this machine answers for.
pub fn available() -> Vec<DeviceChoice> {
    built_in()
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect()
}

/// What a test runs on: the device that `BURN_DEVICE` names, or else the first of every kind that this build has and this machine answers for.
///
/// # Errors
/// Where the named device is not there.
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
    fn what_a_build_has_can_be_named_and_what_it_lacks_names_its_feature() {
        assert!(!available().is_empty());
        let Some(kind) = KINDS.iter().find(|kind| kind.open.is_none()) else {
            return;
        };
        let error = kind.name.parse::<DeviceChoice>().unwrap_err();
        let advice = format!("--features {}", kind.name);
        assert!(
            error.contains(&advice) && error.contains(built_in()[0]),
            "{error}"
        );
    }

    #[test]
    fn an_index_is_a_number_of_a_device_that_is_there() {
        let name = built_in()[0];
        assert!(format!("{name}:0").parse::<DeviceChoice>().is_ok());
        assert!(
            format!("{name}:1")
                .parse::<DeviceChoice>()
                .unwrap_err()
                .contains("no device 1")
        );
        assert!(
            format!("{name}:x")
                .parse::<DeviceChoice>()
                .unwrap_err()
                .contains("index")
        );
    }
}
