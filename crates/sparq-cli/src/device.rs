//! The devices that a user can name, and which of them this build has.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

/// A row of the table of devices.
struct Kind {
    /// The name on the command line.
    name: &'static str,
    /// Makes the device with this index; `None` where the cargo feature of the same name is off.
    open: Option<fn(usize) -> Option<Device>>,
}

#[cfg(feature = "flex")]
const FLEX: Option<fn(usize) -> Option<Device>> = Some(|index| (index == 0).then(Device::flex));
#[cfg(not(feature = "flex"))]
const FLEX: Option<fn(usize) -> Option<Device>> = None;

#[cfg(feature = "ndarray")]
#[allow(
    deprecated,
    reason = "burn marks its oldest backend as deprecated; it stays the second opinion on flex"
)]
const NDARRAY: Option<fn(usize) -> Option<Device>> =
    Some(|index| (index == 0).then(Device::ndarray));
#[cfg(not(feature = "ndarray"))]
const NDARRAY: Option<fn(usize) -> Option<Device>> = None;

/// The devices that some build of this version has; each is a cargo feature.
const BACKENDS: [&str; 2] = ["flex", "ndarray"];

const KINDS: [Kind; 7] = [
    Kind {
        name: "flex",
        open: FLEX,
    },
    Kind {
        name: "ndarray",
        open: NDARRAY,
    },
    Kind {
        name: "cuda",
        open: None,
    },
    Kind {
        name: "vulkan",
        open: None,
    },
    Kind {
        name: "wgpu",
        open: None,
    },
    Kind {
        name: "metal",
        open: None,
    },
    Kind {
        name: "rocm",
        open: None,
    },
];

/// A device by name and index that this build has, such as `flex` or `cuda:1`.
#[derive(Clone, Debug)]
pub struct DeviceChoice {
    name: String,
    device: Device,
}

impl DeviceChoice {
    /// The device.
    pub fn open(&self) -> Device {
        self.device.clone()
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
            let advice = match BACKENDS.contains(&name) {
                true => format!("rebuild with --features {name}"),
                false => format!("this version has no {name} backend"),
            };
            return Err(format!(
                "this build has: {}; expected one of them, found {name:?}; {advice}",
                built_in().join(", ")
            ));
        };
        match open(index) {
            Some(device) => Ok(Self {
                name: text.to_owned(),
                device,
            }),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_no_build_has_is_refused_without_naming_a_feature() {
        let error = "cuda:1".parse::<DeviceChoice>().unwrap_err();
        assert!(
            error.contains("no cuda backend")
                && !error.contains("--features")
                && error.contains(built_in()[0]),
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
