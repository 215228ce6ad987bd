//! Reports on standard error that kernels are being compiled, which the first run on a GPU waits
//! for.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sparq_device::kernel_cache;

/// The time between two looks into the cache folder.
const LOOK: Duration = Duration::from_millis(500);
/// The time between two lines.
const LINE: Duration = Duration::from_secs(10);

/// Reports compiled kernels from now on until the program ends.
///
/// cubecl does not tell when it compiles. Each compiled kernel adds a file to the cache folder, so
/// they are counted there, other processes' included.
pub fn report() {
    let Some(folder) = kernel_cache::folder() else {
        return;
    };
    let before = kernels(&folder);
    let watch = move || watch(folder, before);
    // Without a thread for it there are no reports.
    let _ = thread::Builder::new().name("compiling".into()).spawn(watch);
}

fn watch(folder: PathBuf, before: u64) {
    let mut last: Option<(Instant, u64)> = None;
    loop {
        thread::sleep(LOOK);
        let count = kernels(&folder).saturating_sub(before);
        let due = match last {
            None => count > 0,
            Some((time, reported)) => count > reported && time.elapsed() > LINE,
        };
        if due {
            let plural = if count == 1 { "" } else { "s" };
            eprintln!(
                "compiling kernels for this GPU, first run only: {count} kernel{plural} so far"
            );
            last = Some((Instant::now(), count));
        }
    }
}

/// Returns the number of compiled kernels in the cache folder.
fn kernels(folder: &Path) -> u64 {
    let kinds = kernel_cache::contents(folder).unwrap_or_default();
    let compiled = kinds.iter().filter(|kind| kind.is_kernels());
    compiled.map(|kind| kind.files).sum()
}
