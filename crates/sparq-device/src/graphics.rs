//! Opens the devices of wgpu: Vulkan, Metal, or the graphics API that wgpu finds.

use std::ffi::CStr;
use std::sync::{Mutex, PoisonError};

use burn::tensor::wgpu::wgpu::Adapter;
use burn::tensor::wgpu::wgpu::hal::api::Vulkan;
use burn::tensor::wgpu::{WgpuBackend, WgpuInitError};
use burn::tensor::{Device, DeviceKind};

use crate::Opened;

/// For drivers without this extension, cubecl-spirv 0.11.3 gives shared memory the wrong type. The
/// SPIR-V is then invalid: lavapipe crashes on it or computes wrong numbers.
const EXPLICIT_LAYOUT: &CStr = c"VK_KHR_workgroup_memory_explicit_layout";

/// The devices opened so far: burn initializes a device with options only once.
static OPENED: Mutex<Vec<(WgpuBackend, usize, Opened)>> = Mutex::new(Vec::new());

/// Opens the default adapter of a graphics API for index 0, else the discrete GPU with this index.
/// `device` makes the same device without options. Fails if the kernels of this build cannot run on
/// the adapter.
pub(crate) fn open(api: WgpuBackend, device: fn(DeviceKind) -> Device, index: usize) -> Opened {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = opened
        .iter()
        .find(|known| (known.0, known.1) == (api, index));
    if let Some((.., result)) = known {
        return result.clone();
    }
    let kind = match index {
        0 => DeviceKind::DefaultDevice,
        _ => DeviceKind::DiscreteGpu(index),
    };
    let result = initialize(api, kind, device);
    opened.push((api, index, result.clone()));
    result
}

fn initialize(api: WgpuBackend, kind: DeviceKind, device: fn(DeviceKind) -> Device) -> Opened {
    let options = Device::wgpu_options().graphics_api(api);
    match options.device_kind(kind.clone()).init_with_setup() {
        Ok((device, setup)) => {
            // With the feature `vulkan`, every Vulkan adapter gets its kernels in SPIR-V.
            if cfg!(feature = "vulkan") {
                check_spirv(&setup.adapter)?;
            }
            Ok(crate::present(device))
        }
        // Already initialized by code that opened the device without this function.
        Err(WgpuInitError::Registration { .. }) => Ok(crate::present(device(kind))),
        Err(_) => Ok(None),
    }
}

/// Returns an error if the adapter is one of Vulkan whose driver cannot run kernels in SPIR-V.
fn check_spirv(adapter: &Adapter) -> Result<(), String> {
    // SAFETY: nothing is destroyed or changed through the handle.
    let lacks_layout = unsafe { adapter.as_hal::<Vulkan>() }.is_some_and(|vulkan| {
        !vulkan
            .physical_device_capabilities()
            .supports_extension(EXPLICIT_LAYOUT)
    });
    if !lacks_layout {
        return Ok(());
    }
    Err(format!(
        "the driver of {} lacks {}, which kernels compiled to SPIR-V need; use --device wgpu in a \
         build with --features wgpu and without vulkan, which compiles them to WGSL",
        adapter.get_info().name,
        EXPLICIT_LAYOUT.to_string_lossy()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphics_opens_a_device_twice() {
        let first = open(WgpuBackend::Auto, Device::wgpu, 0);
        assert_eq!(first, open(WgpuBackend::Auto, Device::wgpu, 0));
    }

    /// Mesa's lavapipe calls its adapter `llvmpipe`.
    #[test]
    fn graphics_refuses_spirv_on_lavapipe() {
        let options = Device::wgpu_options().graphics_api(WgpuBackend::Vulkan);
        let Ok((_, setup)) = options.device_kind(DeviceKind::Cpu).init_with_setup() else {
            return;
        };
        if setup.adapter.get_info().name.starts_with("llvmpipe") {
            let error = check_spirv(&setup.adapter).unwrap_err();
            for part in ["VK_KHR_workgroup_memory_explicit_layout", "--device wgpu"] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}
