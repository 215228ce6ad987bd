//! Times the start of the program `sparq`: fresh processes from the command to the first token,
//! the first with an empty kernel cache, the others with the cache it left.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sparq_measure::shape::CacheType;

/// Time between two looks at a running process.
const POLL: Duration = Duration::from_millis(2);

/// Bytes of the messages of a failed process that an error repeats.
const MESSAGE_BYTES: usize = 400;

/// The processes to start.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The program `sparq`.
    pub program: PathBuf,
    /// The device, as on its command line.
    pub device: String,
    /// The value of its `--model`. `None` means the embedded model.
    pub model: Option<String>,
    /// The name of the model in the results.
    pub name: String,
    /// The file with the prompt.
    pub prompt: PathBuf,
    /// The value of its `--dtype`.
    pub dtype: Option<CacheType>,
    /// More arguments of `sparq generate`.
    pub more: Vec<String>,
    /// The number of processes with a filled cache.
    pub warm: usize,
    /// The longest time of a process.
    pub timeout: Duration,
}

/// The results of one model and prompt on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRun {
    /// Name of the device on the command line.
    pub device: String,
    /// Name of the GPU, as reported by the driver.
    pub gpu: Option<String>,
    /// The model: the name of its folder or file.
    pub model: String,
    /// Bytes of its files. `None` for the embedded model.
    pub model_bytes: Option<u64>,
    /// The element type of weights and cache.
    pub dtype: Option<CacheType>,
    /// The number of tokens of the prompt.
    pub prompt_tokens: Option<usize>,
    /// One row per process.
    pub rows: Vec<StartRow>,
}

/// The kernel cache that a process finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheState {
    /// An empty folder.
    Cold,
    /// The folder that an equal process left.
    Warm,
}

impl CacheState {
    /// The name in JSON files and tables.
    pub fn name(self) -> &'static str {
        match self {
            CacheState::Cold => "cold",
            CacheState::Warm => "warm",
        }
    }
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRow {
    /// The kernel cache.
    pub cache: CacheState,
    /// Its phases.
    pub phases: Option<Phases>,
    /// Bytes of the cache after the process.
    pub cache_bytes: u64,
    /// The reason why it was not measured.
    pub failed: Option<String>,
}

/// The phases of a process, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// From the command to the first statement of the program.
    pub process_us: f64,
    /// Loading the model.
    pub load_us: f64,
    /// The prefill of the prompt.
    pub prefill_us: f64,
    /// From the command to the logits that determine the first token: all phases before, and
    /// tokenizer, device and cache.
    pub first_token_us: f64,
    /// The first decode step, if the first token did not end the text.
    pub second_token_us: Option<f64>,
    /// From the command to the end of the process.
    pub total_us: f64,
}

impl Phases {
    /// The part before the first token that is none of the other phases.
    pub fn other_us(&self) -> f64 {
        self.first_token_us - self.process_us - self.load_us - self.prefill_us
    }
}

/// Starts the processes one after the other and passes each row to `progress`. Ends after the
/// first that fails.
///
/// The files of the model are read once before, so that every process finds them in the page cache.
///
/// # Errors
/// If a file of the model cannot be read, or a folder or process cannot be made.
pub fn run(setup: &Setup, mut progress: impl FnMut(&StartRow)) -> Result<StartRun> {
    let model = setup.model.as_deref().map(Path::new);
    // An ID of the hub is no path.
    let model = model.filter(|path| path.exists());
    let model_bytes = model.map(read_files).transpose()?;
    let cache = tempfile::tempdir().context("a folder for the kernel cache")?;
    let mut run = StartRun {
        device: setup.device.clone(),
        gpu: None,
        model: setup.name.clone(),
        model_bytes,
        dtype: None,
        prompt_tokens: None,
        rows: Vec::new(),
    };
    for index in 0..=setup.warm {
        let measured = process(setup, cache.path());
        let mut row = StartRow {
            cache: match index {
                0 => CacheState::Cold,
                _ => CacheState::Warm,
            },
            phases: None,
            cache_bytes: files_in(cache.path())?.iter().map(|(_, size)| size).sum(),
            failed: None,
        };
        match measured {
            Ok((document, phases)) => {
                row.phases = Some(phases);
                run.dtype = Some(document.dtype);
                run.prompt_tokens = Some(document.stats.prompt_tokens);
            }
            Err(why) => row.failed = Some(format!("{why:#}")),
        }
        progress(&row);
        let failed = row.failed.is_some();
        run.rows.push(row);
        if failed {
            break;
        }
    }
    Ok(run)
}

/// The part of the JSON document of `sparq generate` that times come from.
#[derive(Debug, Deserialize)]
struct Document {
    dtype: CacheType,
    start: Start,
    stats: Stats,
}

#[derive(Debug, Deserialize)]
struct Start {
    began_unix_seconds: f64,
    load_seconds: f64,
    first_token_seconds: f64,
}

#[derive(Debug, Deserialize)]
struct Stats {
    prompt_tokens: usize,
    new_tokens: usize,
    prefill_seconds: f64,
    decode_seconds: f64,
}

/// Runs one process and reads its times.
fn process(setup: &Setup, cache: &Path) -> Result<(Document, Phases)> {
    let mut command = Command::new(&setup.program);
    command
        .args(["generate", "--json", "--max-new-tokens", "2", "--device"])
        .arg(&setup.device)
        .arg("--prompt-file")
        .arg(&setup.prompt)
        .env("SPARQ_CACHE_DIR", cache.join("sparq"))
        // The driver of a GPU keeps compiled kernels too.
        .env("CUDA_CACHE_PATH", cache.join("driver"));
    if let Some(model) = &setup.model {
        command.arg("--model").arg(model);
    }
    if let Some(dtype) = setup.dtype {
        command.args(["--dtype", dtype.name()]);
    }
    command.args(&setup.more);
    let (mut output, mut messages) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(messages.try_clone()?);
    let (start, started_at) = (Instant::now(), unix_seconds());
    let child = command.spawn();
    let child = child.with_context(|| setup.program.display().to_string())?;
    let status = wait(child, start + setup.timeout)?;
    let total = start.elapsed();
    let Some(status) = status else {
        bail!("no end within {} s", setup.timeout.as_secs());
    };
    if !status.success() {
        bail!("{status}: {}", last_bytes(&mut messages)?);
    }
    output.rewind()?;
    let document: Document = serde_json::from_reader(output).with_context(|| {
        let program = setup.program.display();
        format!("{program}: expected the document of `sparq generate` of this version")
    })?;
    let us = |seconds: f64| 1e6 * seconds;
    let process = document.start.began_unix_seconds - started_at;
    let phases = Phases {
        process_us: us(process),
        load_us: us(document.start.load_seconds),
        prefill_us: us(document.stats.prefill_seconds),
        first_token_us: us(process + document.start.first_token_seconds),
        second_token_us: (document.stats.new_tokens > 1)
            .then_some(us(document.stats.decode_seconds)),
        total_us: us(total.as_secs_f64()),
    };
    Ok((document, phases))
}

/// Waits for the end of a process, until a time at which it is killed. `None` if it was killed.
fn wait(mut child: Child, end: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

fn unix_seconds() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// The last bytes of a file, as text.
fn last_bytes(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    let from = bytes.len().saturating_sub(MESSAGE_BYTES);
    Ok(String::from_utf8_lossy(&bytes[from..]).trim().to_owned())
}

/// Reads a file, or all files of a folder, to the page cache. Returns their bytes.
fn read_files(path: &Path) -> Result<u64> {
    let mut sum = 0;
    for (path, size) in files_in(path)? {
        let named = || path.display().to_string();
        let mut file = File::open(&path).with_context(named)?;
        io::copy(&mut file, &mut io::sink()).with_context(named)?;
        sum += size;
    }
    Ok(sum)
}

/// The files below a folder with their sizes, or the file itself.
fn files_in(path: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let named = || path.display().to_string();
    let metadata = fs::metadata(path).with_context(named)?;
    if metadata.is_file() {
        return Ok(vec![(path.to_owned(), metadata.len())]);
    }
    let mut found = Vec::new();
    if metadata.is_dir() {
        for entry in fs::read_dir(path).with_context(named)? {
            found.extend(files_in(&entry.with_context(named)?.path())?);
        }
    }
    Ok(found)
}

/// The program `sparq` beside this program.
///
/// # Errors
/// If there is none.
pub fn beside_this_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("the path of this program")?;
    let name = format!("sparq{}", std::env::consts::EXE_SUFFIX);
    let program = this.with_file_name(name);
    match program.is_file() {
        true => Ok(program),
        false => bail!(
            "expected the program {}, found none; build it, or name it with --program",
            program.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_phases_sum_to_the_first_token() {
        let phases = Phases {
            process_us: 1.0,
            load_us: 20.0,
            prefill_us: 300.0,
            first_token_us: 4321.0,
            second_token_us: None,
            total_us: 5000.0,
        };
        assert_eq!(phases.other_us(), 4000.0);
    }

    #[test]
    fn start_reads_the_files_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("inner")).unwrap();
        fs::write(folder.path().join("a"), "12345").unwrap();
        fs::write(folder.path().join("inner/b"), "678").unwrap();
        assert_eq!(read_files(folder.path()).unwrap(), 8);
        assert_eq!(read_files(&folder.path().join("a")).unwrap(), 5);
        assert!(read_files(&folder.path().join("missing")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn start_ends_processes_that_hang() {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let began = Instant::now();
        let status = wait(child, began + Duration::from_millis(20)).unwrap();
        assert_eq!(status, None);
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
