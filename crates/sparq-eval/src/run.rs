//! The evaluation itself: [`Evaluation`].

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use burn::tensor::FloatDType;
use serde_json::{Map, Value};
use sparq::Method;
use sparq_models::text::{CancelToken, Sampler, SamplingConfig, TextTokenizer};
use sparq_models::{CausalLm, ModelCache};

use crate::contender::share;
use crate::steps::{check_tokens, negative_log_likelihood, read_while, step};
use crate::{Contender, EvalError, FORMAT, Kind, Passage, Question, Record, Setup, TaskName, Work};

/// A model and the methods that are tried on it.
pub struct Evaluation<'a> {
    /// The model.
    pub model: &'a dyn CausalLm,
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// d of the model.
    pub head_dim: usize,
    /// The type of the cache.
    pub dtype: FloatDType,
    /// What goes into every record.
    pub setup: Setup,
    /// The methods.
    pub contenders: Vec<Contender>,
}

/// What is to be done about a passage: its questions, each with the contenders that have not answered it.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The task.
    pub task: TaskName,
    /// The text.
    pub passage: &'a Passage,
    /// Questions and who is to answer them.
    pub open: Vec<(&'a Question, Vec<&'a Contender>)>,
}

/// Why an evaluation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All is done.
    Finished,
    /// It was to stop.
    Cancelled,
}

impl<'a> Evaluation<'a> {
    /// The settings of a contender for an example: those for the context that it was made to fill, or else for its own length.
    ///
    /// # Errors
    /// When the method can't do with its budget.
    pub fn settings(
        &self,
        passage: &Passage,
        question: &Question,
        contender: &Contender,
    ) -> Result<Method, EvalError> {
        let positions = passage
            .context
            .unwrap_or_else(|| passage.positions(question));
        Ok(contender.at(self.head_dim, positions)?)
    }

    /// Does the jobs, on `threads` threads with an equal part of the processors each, and hands over each record as it is finished.
    ///
    /// Once `cancel` is on, what is unfinished is left and nothing new begun.
    ///
    /// # Errors
    /// When the model, the tokenizer or the device fails, or `on_record` does.
    pub fn run(
        &self,
        jobs: &[Job<'_>],
        threads: usize,
        cancel: &CancelToken,
        on_record: &mut dyn FnMut(Record) -> Result<(), EvalError>,
    ) -> Result<Ending, EvalError> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let stop = || cancel.is_cancelled() || failed.load(Ordering::Relaxed);
        let work = |sender: &mpsc::Sender<Result<Record, EvalError>>| {
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                // The receiver is there until the last sender has gone.
                let mut send = |record| drop(sender.send(Ok(record)));
                match self.finish(job, &stop, &mut send) {
                    Ok(Ending::Finished) => {}
                    Ok(Ending::Cancelled) => break,
                    Err(error) => {
                        drop(sender.send(Err(error)));
                        break;
                    }
                }
            }
        };
        let outcome = std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..threads.max(1) {
                let sender = sender.clone();
                let work = &work;
                scope.spawn(move || with_share_of_processors(threads, || work(&sender)));
            }
            drop(sender);
            let mut outcome = Ok(());
            let mut handed_over = true;
            for result in receiver {
                // After a failure what other threads have finished meanwhile is worth keeping, unless keeping it is what failed: half a line may be
                // written, and nothing must come behind it.
                let result = match result {
                    Ok(record) if handed_over => {
                        let kept = on_record(record);
                        handed_over = kept.is_ok();
                        kept
                    }
                    other => other.map(drop),
                };
                if let Err(error) = result {
                    failed.store(true, Ordering::Relaxed);
                    outcome = outcome.and(Err(error));
                }
            }
            outcome
        });
        outcome.map(|()| match cancel.is_cancelled() {
            true => Ending::Cancelled,
            false => Ending::Finished,
        })
    }

    /// Reads the text of a job once, each question once behind it, and lets the methods answer from there.
    fn finish(
        &self,
        job: &Job<'_>,
        stop: &dyn Fn() -> bool,
        on_record: &mut dyn FnMut(Record),
    ) -> Result<Ending, EvalError> {
        let go_on = |_| !stop();
        let methods = self.methods(job)?;
        let positions = job
            .open
            .iter()
            .map(|(question, _)| job.passage.positions(question));
        let Some(capacity) = positions.max() else {
            return Ok(Ending::Finished);
        };
        let mut text = self
            .model
            .new_shared_cache(1, capacity, self.dtype, &methods)?;
        read_while(self.model, &mut text, &job.passage.text, &go_on)?;
        for (number, (question, contenders)) in job.open.iter().enumerate() {
            // A clone shares the buffers until one of the two is written to: the last reader needs none.
            let last = number + 1 == job.open.len();
            let mut asked = if last {
                std::mem::replace(&mut text, ModelCache { layers: Vec::new() })
            } else {
                text.clone()
            };
            let (&first, before) = question
                .prompt
                .split_last()
                .expect("a question has a token");
            read_while(self.model, &mut asked, before, &go_on)?;
            if stop() {
                return Ok(Ending::Cancelled);
            }
            for contender in contenders {
                let method = self.settings(job.passage, question, contender)?;
                let mut cache = asked.for_method(&method)?;
                let Some(answer) = self.answer(question, first, &mut cache, &method, stop)? else {
                    return Ok(Ending::Cancelled);
                };
                on_record(self.record(job, question, contender, method, answer));
            }
        }
        Ok(Ending::Finished)
    }

    fn methods(&self, job: &Job<'_>) -> Result<Vec<Method>, EvalError> {
        let mut methods = Vec::new();
        for (question, contenders) in &job.open {
            for contender in contenders {
                methods.push(self.settings(job.passage, question, contender)?);
            }
        }
        Ok(methods)
    }

    /// Answers with a method, from the question's last token on; `None` when it was to stop.
    fn answer(
        &self,
        question: &Question,
        first: u32,
        cache: &mut ModelCache,
        method: &Method,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Answer>, EvalError> {
        let begin = Instant::now();
        let mut answer = Answer::default();
        let mut token = first;
        match &question.work {
            Work::Answer { max_tokens, judge } => {
                let mut sampler = Sampler::new(SamplingConfig::default())?;
                let (mut tokens, mut text) = (Vec::new(), String::new());
                while tokens.len() < *max_tokens && !judge.is_settled(&text) {
                    if stop() {
                        return Ok(None);
                    }
                    let mut logits = step(self.model, cache, token, method)?;
                    answer.steps += 1;
                    if tokens.is_empty() {
                        self.forbid_end(&mut logits);
                    }
                    token = sampler.sample(&mut logits, &[])?;
                    if self.tokenizer.eos_ids().contains(&token) {
                        break;
                    }
                    tokens.push(token);
                    text = self.tokenizer.decode(&tokens, true)?;
                }
                answer.score = judge.score(&text);
                answer.detail.insert("answer".into(), text.into());
            }
            Work::Predict { tokens, characters } => {
                check_tokens(self.model, tokens)?;
                let mut nll = 0.0;
                for &expected in tokens {
                    if stop() {
                        return Ok(None);
                    }
                    let logits = step(self.model, cache, token, method)?;
                    answer.steps += 1;
                    nll += negative_log_likelihood(&logits, expected);
                    token = expected;
                }
                answer.score = nll / std::f64::consts::LN_2 / *characters as f64;
                answer.detail.insert("nll".into(), nll.into());
                answer.detail.insert("chars".into(), (*characters).into());
            }
        }
        answer.seconds = begin.elapsed().as_secs_f64();
        Ok(Some(answer))
    }

    /// An answer has a token: models that were trained on conversations would often end a text that is none before it begins.
    fn forbid_end(&self, logits: &mut [f32]) {
        for &id in self.tokenizer.eos_ids() {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::MIN;
            }
        }
    }

    fn record(
        &self,
        job: &Job<'_>,
        question: &Question,
        contender: &Contender,
        method: Method,
        answer: Answer,
    ) -> Record {
        let (passage, metric) = (job.passage, job.task.metric());
        let positions = passage
            .context
            .unwrap_or_else(|| passage.positions(question));
        let mut detail = question.detail.clone();
        detail.extend(answer.detail);
        Record {
            kind: Kind::Example,
            format: FORMAT,
            model: self.setup.model.clone(),
            device: self.setup.device.clone(),
            dtype: self.setup.dtype.clone(),
            seed: self.setup.seed,
            task: job.task,
            example: question.example.clone(),
            context: passage.context,
            // The last token of the prompt is the first that is decoded.
            prompt_tokens: passage.text.len() + question.prompt.len() - 1,
            prompt_crc32: passage.crc32(question),
            method: contender.method.clone(),
            settings: method,
            budget: contender.budget,
            transfer: share(&method, self.head_dim, positions),
            metric,
            better: metric.better(),
            score: answer.score,
            detail,
            steps: answer.steps,
            seconds: answer.seconds,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// What a method made of an example.
#[derive(Default)]
struct Answer {
    score: f64,
    detail: Map<String, Value>,
    steps: usize,
    seconds: f64,
}

/// Runs `work` so that what it computes in parallel takes an equal part of the processors, one at least.
fn with_share_of_processors(threads: usize, work: impl FnOnce() + Send) {
    if threads <= 1 {
        return work();
    }
    let share = (rayon::current_num_threads() / threads).max(1);
    match rayon::ThreadPoolBuilder::new().num_threads(share).build() {
        Ok(pool) => pool.install(work),
        // Slower, and right all the same.
        Err(_) => work(),
    }
}
