//! [`ResultsFile`]: records on disk, one line each. An interruption loses no finished record.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::lines::whole_lines;
use crate::{BudgetedMethod, EvalError, FORMAT, Passage, Protocol, Question, Record, TaskName};

/// The fields common to all records of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The model.
    pub model: String,
    /// The device.
    pub device: String,
    /// The type of weights and cache.
    pub dtype: String,
    /// The seed that the examples are drawn with.
    pub seed: u64,
    /// The attention that reads questions.
    pub question: Protocol,
}

impl Setup {
    /// Returns the setup of a record.
    pub(crate) fn of(record: &Record) -> Self {
        Self {
            model: record.model.clone(),
            device: record.device.clone(),
            dtype: record.dtype.clone(),
            seed: record.seed,
            question: record.question,
        }
    }

    /// Describes the first difference to a record, as `key: expected x, found y`.
    fn difference(&self, record: &Record) -> Option<String> {
        let pairs = [
            ("format", FORMAT.to_string(), record.format.to_string()),
            ("model", self.model.clone(), record.model.clone()),
            ("device", self.device.clone(), record.device.clone()),
            ("dtype", self.dtype.clone(), record.dtype.clone()),
            ("seed", self.seed.to_string(), record.seed.to_string()),
            (
                "question",
                self.question.to_string(),
                record.question.to_string(),
            ),
        ];
        let different = pairs
            .into_iter()
            .find(|(_, expected, found)| expected != found);
        different.map(|(key, expected, found)| {
            format!("{key}: expected {expected}, found {found}; use another file")
        })
    }
}

/// The identity of a record within a setup: task, example, method and budget.
pub(crate) type Key = (TaskName, String, String, Option<u64>);

/// Returns the identity of a record.
pub(crate) fn key(record: &Record) -> Key {
    (
        record.task,
        record.example.clone(),
        record.method.clone(),
        record.budget.map(f64::to_bits),
    )
}

/// A results file open for appending.
///
/// One write appends one record, so an interruption loses only unfinished examples. Opening a file
/// drops a last line that a crash left incomplete. The file is locked while it is open.
#[derive(Debug)]
pub struct ResultsFile {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
    finished: HashSet<Key>,
}

impl ResultsFile {
    /// Opens a file, or creates it with its parent folders.
    ///
    /// # Errors
    /// If the file cannot be written, another program writes to it, or a line is not a record of
    /// `setup`.
    pub fn open(path: &Path, setup: &Setup) -> Result<Self, EvalError> {
        let write = EvalError::write(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(&write)?;
        }
        // A device or a pipe has no earlier records.
        let is_stream = std::fs::metadata(path).is_ok_and(|file| !file.is_file());
        let mut options = OpenOptions::new();
        options.read(!is_stream).append(true).create(!is_stream);
        let mut file = options.open(path).map_err(&write)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => write(io::Error::other("another program writes to it")),
            TryLockError::Error(error) => write(error),
        })?;
        let mut text = Vec::new();
        if !is_stream {
            file.read_to_end(&mut text).map_err(&write)?;
        }
        let whole = text
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        if whole < text.len() {
            file.set_len(whole as u64).map_err(&write)?;
            file.seek(SeekFrom::End(0)).map_err(&write)?;
        }
        let mut results = Self {
            path: path.to_owned(),
            file,
            records: Vec::new(),
            finished: HashSet::new(),
        };
        for record in parse(path, &text[..whole])? {
            if let Some(reason) = setup.difference(&record) {
                return Err(results.wrong(results.records.len() + 1, reason));
            }
            results.note(record);
        }
        Ok(results)
    }

    /// Returns the records in the order of the file.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Appends a record.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn append(&mut self, record: Record) -> Result<(), EvalError> {
        let write = EvalError::write(&self.path);
        let mut line = serde_json::to_vec(&record).map_err(|error| write(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(write)?;
        self.note(record);
        Ok(())
    }

    /// Returns whether the file has the record of a method on an example.
    pub fn has(&self, task: TaskName, question: &Question, method: &BudgetedMethod) -> bool {
        let (method, budget) = (&method.method, method.budget.map(f64::to_bits));
        self.finished
            .contains(&(task, question.example.clone(), method.clone(), budget))
    }

    /// Checks that the records of these examples have the tokens and settings that a run would
    /// write now.
    ///
    /// # Errors
    /// [`EvalError::Results`] with the first line that differs.
    pub fn check(
        &self,
        task: TaskName,
        passages: &[Passage],
        settings: &dyn Fn(&Passage, &Question, &BudgetedMethod) -> Option<sparq::Method>,
    ) -> Result<(), EvalError> {
        let mut by_name: HashMap<&str, (&Passage, &Question)> = HashMap::new();
        for passage in passages {
            for question in &passage.questions {
                by_name.insert(&question.example, (passage, question));
            }
        }
        for (index, record) in self.records.iter().enumerate() {
            let example = by_name.get(record.example.as_str());
            let Some((passage, question)) = example.filter(|_| record.task == task) else {
                continue;
            };
            let method = BudgetedMethod {
                method: record.method.clone(),
                budget: record.budget,
            };
            let reason = if record.prompt_crc32 != passage.crc32(question) {
                "expected the tokens of this task, found others, made from another text, data set or option"
            } else if settings(passage, question, &method)
                .is_some_and(|settings| settings != record.settings)
            {
                "expected the current settings of the method, found others"
            } else {
                continue;
            };
            let example = &record.example;
            let reason = format!("{reason} ({task}, {example}, {method}); use another file");
            return Err(self.wrong(index + 1, reason));
        }
        Ok(())
    }

    fn note(&mut self, record: Record) {
        self.finished.insert(key(&record));
        self.records.push(record);
    }

    fn wrong(&self, line: usize, reason: String) -> EvalError {
        EvalError::Results {
            path: self.path.clone(),
            line,
            reason,
        }
    }
}

/// Reads the records of a file, plain or compressed with gzip. Ignores an incomplete last line.
///
/// # Errors
/// If the file cannot be read or a line is not a record.
pub fn read_records(path: &Path) -> Result<Vec<Record>, EvalError> {
    let text = whole_lines(path).map_err(EvalError::read(path))?;
    parse(path, text.as_bytes())
}

fn parse(path: &Path, lines: &[u8]) -> Result<Vec<Record>, EvalError> {
    let lines = lines.split(|&byte| byte == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty());
    let record = |(index, line)| {
        serde_json::from_slice(line).map_err(|error| EvalError::Results {
            path: path.to_owned(),
            line: index + 1,
            reason: format!("expected a record, found something else: {error}"),
        })
    };
    lines.map(record).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::Work;

    fn setup() -> Setup {
        Setup {
            model: "embedded".into(),
            device: "flex".into(),
            dtype: "f32".into(),
            seed: 7,
            question: Protocol::Method,
        }
    }

    fn record(example: usize) -> Record {
        Record {
            seed: 7,
            example: example.to_string(),
            context: None,
            score: 0.1 + example as f64,
            ..Record::dense(TaskName::Bpc)
        }
    }

    fn question(example: &str) -> Question {
        Question {
            example: example.into(),
            prompt: vec![1],
            work: Work::Predict {
                tokens: vec![2],
                characters: 1,
            },
            detail: Map::new(),
        }
    }

    fn has(results: &ResultsFile, example: &str) -> bool {
        let dense = BudgetedMethod {
            method: "dense".into(),
            budget: None,
        };
        results.has(TaskName::Bpc, &question(example), &dense)
    }

    #[test]
    fn truncated_files_keep_their_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("results.jsonl");
        let mut results = ResultsFile::open(&path, &setup()).unwrap();
        for example in 0..3 {
            results.append(record(example)).unwrap();
        }
        drop(results);
        let whole = std::fs::read(&path).unwrap();
        for length in (0..whole.len()).step_by(11) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut results = ResultsFile::open(&path, &setup()).unwrap();
            let breaks = whole[..length].iter().filter(|&&byte| byte == b'\n');
            let lines = breaks.count();
            assert_eq!(results.records().len(), lines, "{length}");
            assert_eq!(
                ["0", "1"].map(|name| has(&results, name)),
                [lines > 0, lines > 1]
            );
            for example in lines..3 {
                results.append(record(example)).unwrap();
            }
            drop(results);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{length}");
        }
    }

    #[test]
    fn files_are_locked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let first = ResultsFile::open(&path, &setup()).unwrap();
        let error = ResultsFile::open(&path, &setup()).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("another program"), "{source}");
        drop(first);
        assert!(ResultsFile::open(&path, &setup()).is_ok());
    }

    #[test]
    fn records_of_another_setup_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let mut results = ResultsFile::open(&path, &setup()).unwrap();
        results.append(record(0)).unwrap();
        drop(results);
        for key in ["model", "device", "dtype", "seed", "question"] {
            let mut other = setup();
            match key {
                "model" => other.model = "x".into(),
                "device" => other.device = "x".into(),
                "dtype" => other.dtype = "x".into(),
                "question" => other.question = Protocol::Dense,
                _ => other.seed = 8,
            }
            let error = ResultsFile::open(&path, &other).unwrap_err().to_string();
            assert!(error.contains("line 1") && error.contains(key), "{error}");
        }
    }

    #[test]
    fn records_are_read_without_a_setup() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let line = serde_json::to_string(&record(4)).unwrap();
        std::fs::write(&path, format!("{line}\n{}", &line[..20])).unwrap();
        assert_eq!(read_records(&path).unwrap(), [record(4)]);
    }
}
