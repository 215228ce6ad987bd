//! The machine a result was measured on, as described by the operating system.

use std::fs;
use std::process::Command;
use std::thread;

use serde::{Deserialize, Serialize};

/// The machine that hosts the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Operating system.
    pub os: String,
    /// Instruction set.
    pub arch: String,
    /// Name of the processor.
    pub cpu: Option<String>,
    /// Number of cores this process may use.
    pub cores: usize,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes of the processor's last-level cache. A virtual machine may report that of its host.
    pub last_level_cache_bytes: Option<u64>,
}

impl Host {
    /// Describes this machine.
    pub fn this() -> Self {
        Self {
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            cpu: cpu_name(),
            cores: cores(),
            memory_bytes: meminfo("MemTotal:").or_else(|| sysctl("hw.memsize")?.parse().ok()),
            last_level_cache_bytes: last_level_cache(),
        }
    }
}

/// Returns the number of cores this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// Returns the bytes of memory that are available without swapping.
pub fn available_memory() -> Option<u64> {
    meminfo("MemAvailable:").or_else(|| Some(sysctl("hw.memsize")?.parse::<u64>().ok()? / 2))
}

fn cpu_name() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    let named = line.and_then(|line| line.split_once(':'));
    let name = named.map(|(_, name)| name.trim().to_owned());
    name.or_else(|| sysctl("machdep.cpu.brand_string"))
}

fn meminfo(key: &str) -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|line| line.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn last_level_cache() -> Option<u64> {
    let caches = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    caches
        .flatten()
        .filter_map(|cache| parse_size(fs::read_to_string(cache.path().join("size")).ok()?.trim()))
        .max()
        .or_else(|| sysctl("hw.l3cachesize")?.parse().ok())
}

/// Parses a size as the kernel writes it, such as `480K`, into bytes.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let scale = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    Some(digits.parse::<u64>().ok()? * scale)
}

/// Returns the value of a macOS system variable.
fn sysctl(name: &str) -> Option<String> {
    if !cfg!(target_os = "macos") {
        return None;
    }
    let output = Command::new("sysctl").args(["-n", name]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| output.status.success() && !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_sizes_have_binary_units() {
        assert_eq!(parse_size("480K"), Some(480 * 1024));
        assert_eq!(parse_size("33M"), Some(33 << 20));
        assert_eq!(parse_size("12"), Some(12));
        assert_eq!(parse_size("lots"), None);
    }

    #[test]
    fn host_has_cores() {
        assert!(Host::this().cores >= 1);
    }
}
