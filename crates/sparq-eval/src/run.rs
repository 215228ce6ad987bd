//! [`Evaluation`]: runs methods on examples and records their scores.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use burn::tensor::FloatDType;
use serde_json::{Map, Value};
use sparq::cost::CacheShape;
use sparq::methods::Auto;
use sparq::{Method, SparqConfig};
use sparq_models::text::{
    CancelToken, Sampler, SamplingConfig, SpeculativeConfig, SpeculativeDecoder, SpeculativeRow,
    TextTokenizer,
};
use sparq_models::{CausalLm, ModelCache};

use crate::method::transfer_share;
use crate::score::Judge;
use crate::steps::{check_tokens, negative_log_likelihood, read_while, step};
use crate::{
    BudgetedMethod, EvalError, FORMAT, Kind, Passage, Protocol, Question, Record, Setup, TaskName,
    Work,
};

/// The tokens of a draft of lossless decoding.
const LOSSLESS_TOKENS: usize = 4;

/// A model and the methods to evaluate on it.
pub struct Evaluation<'a> {
    /// The model.
    pub model: &'a dyn CausalLm,
    /// The tokenizer of the model.
    pub tokenizer: &'a TextTokenizer,
    /// The sizes of one sequence's cache over all layers, that budgets and bytes are counted with.
    pub shape: CacheShape,
    /// The type of the cache.
    pub dtype: FloatDType,
    /// The fields common to all records.
    pub setup: Setup,
    /// The methods.
    pub methods: Vec<BudgetedMethod>,
}

/// The unanswered questions of a passage, each with the methods that have to answer it.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The task.
    pub task: TaskName,
    /// The text.
    pub passage: &'a Passage,
    /// The questions and their methods.
    pub unanswered: Vec<(&'a Question, Vec<&'a BudgetedMethod>)>,
}

/// The reason why an evaluation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All jobs are finished.
    Finished,
    /// The evaluation was cancelled.
    Cancelled,
}

impl<'a> Evaluation<'a> {
    /// Returns the settings of a method for an example: those for the context it was made to fill,
    /// or for its own length.
    ///
    /// # Errors
    /// If the method cannot keep its budget.
    pub fn settings(
        &self,
        passage: &Passage,
        question: &Question,
        method: &BudgetedMethod,
    ) -> Result<Method, EvalError> {
        Ok(method.at(&self.shape, passage.budget_positions(question))?)
    }

    /// Runs the jobs on `threads` threads with an equal share of the processors each. Calls
    /// `on_record` with each record as it is finished.
    ///
    /// After cancellation, unfinished examples are dropped and no new ones begin.
    ///
    /// # Errors
    /// If the model, the tokenizer, the device or `on_record` fails.
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
                // Sending cannot fail: the receiver outlives all senders.
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
            let mut keeps = true;
            for result in receiver {
                // After a failure, records of other threads are still kept. If keeping them failed,
                // half a line may be written, and nothing must follow it.
                let result = match result {
                    Ok(record) if keeps => {
                        let kept = on_record(record);
                        keeps = kept.is_ok();
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

    /// Reads the text of a job once, densely. The methods read the questions from there, or answer
    /// them after a dense pass over each; see [`Protocol`].
    fn finish(
        &self,
        job: &Job<'_>,
        stop: &dyn Fn() -> bool,
        on_record: &mut dyn FnMut(Record),
    ) -> Result<Ending, EvalError> {
        let continues = |_| !stop();
        let settings = self.all_settings(job)?;
        let questions = job.unanswered.iter().map(|(question, _)| *question);
        let Some(capacity) = questions
            .map(|question| job.passage.positions(question))
            .max()
        else {
            return Ok(Ending::Finished);
        };
        let model = self.model;
        let mut text = model.new_shared_cache(1, capacity, self.dtype, &settings)?;
        read_while(self.model, &mut text, &job.passage.text, &continues)?;
        for (number, (question, methods)) in job.unanswered.iter().enumerate() {
            // A clone copies the buffers when one of the two is written to. The last question needs
            // no clone.
            let last = number + 1 == job.unanswered.len();
            let mut asked = if last {
                std::mem::take(&mut text)
            } else {
                text.clone()
            };
            let prompt = question.prompt.split_last();
            let (&first, mut unread) = prompt.expect("a question has a token");
            if self.setup.question == Protocol::Dense {
                read_while(self.model, &mut asked, unread, &continues)?;
                unread = &[];
            }
            let mut dense = None;
            for method in methods {
                let settings = self.settings(job.passage, question, method)?;
                let mut cache = asked.for_method(&settings)?;
                let reader = match method.is_lossless() {
                    true => Method::DENSE,
                    false => settings,
                };
                self.read_question(&mut cache, unread, &reader, stop)?;
                if stop() {
                    return Ok(Ending::Cancelled);
                }
                if let (Work::Continue { tokens }, None) = (&question.work, &dense) {
                    let mut cache = asked.for_method(&Method::DENSE)?;
                    self.read_question(&mut cache, unread, &Method::DENSE, stop)?;
                    dense = self.generated(first, &mut cache, &Method::DENSE, *tokens, stop)?;
                }
                let answer = match (settings, &question.work) {
                    (_, Work::Continue { tokens }) => match &dense {
                        Some(dense) => {
                            self.follow(dense, first, &mut cache, &reader, *tokens, stop)?
                        }
                        None => None,
                    },
                    (Method::Sparq(draft), Work::Answer { max_tokens, judge })
                        if method.is_lossless() =>
                    {
                        let goal = (*max_tokens, judge);
                        self.answer_lossless(goal, first, &mut cache, draft, stop)?
                    }
                    _ => self.answer(question, first, &mut cache, &reader, stop)?,
                };
                let Some(answer) = answer else {
                    return Ok(Ending::Cancelled);
                };
                on_record(self.record(job, question, method, settings, answer));
            }
        }
        Ok(Ending::Finished)
    }

    /// Reads the tokens of a question with a method: dense attention in one pass, the others token
    /// by token. Stops early if cancelled.
    fn read_question(
        &self,
        cache: &mut ModelCache,
        tokens: &[u32],
        method: &Method,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), EvalError> {
        if *method == Method::DENSE {
            return read_while(self.model, cache, tokens, &|_| !stop());
        }
        for &token in tokens {
            if stop() {
                break;
            }
            step(self.model, cache, token, method)?;
        }
        Ok(())
    }

    fn all_settings(&self, job: &Job<'_>) -> Result<Vec<Method>, EvalError> {
        let mut settings = Vec::new();
        for (question, methods) in &job.unanswered {
            for method in methods {
                settings.push(self.settings(job.passage, question, method)?);
            }
        }
        Ok(settings)
    }

    /// Answers with a method, beginning with the question's last token. Returns `None` if
    /// cancelled.
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
            // The caller compares these with dense attention.
            Work::Continue { .. } => {}
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

    /// Answers with drafts that dense attention verifies. Returns `None` if cancelled.
    fn answer_lossless(
        &self,
        (max_tokens, judge): (usize, &Judge),
        first: u32,
        cache: &mut ModelCache,
        draft: SparqConfig,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Answer>, EvalError> {
        let begin = Instant::now();
        let mut sampler = Sampler::new(SamplingConfig::default())?;
        let mut logits = step(self.model, cache, first, &Method::DENSE)?;
        self.forbid_end(&mut logits);
        let mut next = VecDeque::from([sampler.sample(&mut logits, &[])?]);
        // The number of tokens is fixed, so the costs do not matter.
        let costs = Auto::new(draft, 1, &self.model.device());
        let config = SpeculativeConfig::new(costs).with_tokens(Some(LOSSLESS_TOKENS));
        let mut decoder = SpeculativeDecoder::new(self.model, cache, config)?;
        let (mut sequence, mut text) = (vec![first], String::new());
        while sequence.len() <= max_tokens && !judge.is_settled(&text) {
            if stop() {
                return Ok(None);
            }
            if next.is_empty() {
                let row = SpeculativeRow {
                    sequence: &sequence,
                    sampler: &mut sampler,
                    limit: max_tokens + 1 - sequence.len(),
                };
                next.extend(decoder.step(&mut [row])?.remove(0));
            }
            let token = next.pop_front().unwrap_or(first);
            if self.tokenizer.eos_ids().contains(&token) {
                break;
            }
            sequence.push(token);
            text = self.tokenizer.decode(&sequence[1..], true)?;
        }
        let stats = *decoder.stats();
        let mut answer = Answer {
            score: judge.score(&text),
            steps: 1 + stats.tokens,
            seconds: begin.elapsed().as_secs_f64(),
            ..Answer::default()
        };
        let details = [
            ("answer", Value::from(text)),
            ("acceptance", stats.acceptance().into()),
            (
                "tokens_per_verification",
                stats.tokens_per_verification().into(),
            ),
        ];
        answer
            .detail
            .extend(details.map(|(key, value)| (key.to_owned(), value)));
        Ok(Some(answer))
    }

    /// Excludes the end of the text as the first token. Models trained on conversations often end a
    /// text that is not a conversation at once.
    pub(crate) fn forbid_end(&self, logits: &mut [f32]) {
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
        method: &BudgetedMethod,
        settings: Method,
        answer: Answer,
    ) -> Record {
        let (passage, metric) = (job.passage, job.task.metric());
        let positions = passage.budget_positions(question);
        let mut detail = question.detail.clone();
        detail.extend(answer.detail);
        Record {
            kind: Kind::Example,
            format: FORMAT,
            model: self.setup.model.clone(),
            device: self.setup.device.clone(),
            dtype: self.setup.dtype.clone(),
            seed: self.setup.seed,
            question: self.setup.question,
            task: job.task,
            example: question.example.clone(),
            context: passage.context,
            // The last token of the prompt is the first one decoded.
            prompt_tokens: passage.text.len() + question.prompt.len() - 1,
            prompt_crc32: passage.crc32(question),
            method: method.method.clone(),
            settings,
            budget: method.budget,
            transfer: transfer_share(&settings, &self.shape, positions),
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

/// The result of a method on an example.
#[derive(Default)]
pub(crate) struct Answer {
    pub score: f64,
    pub detail: Map<String, Value>,
    pub steps: usize,
    pub seconds: f64,
}

/// Runs `work` in a thread pool with an equal share of the processors, at least one.
fn with_share_of_processors(threads: usize, work: impl FnOnce() + Send) {
    if threads <= 1 {
        return work();
    }
    let share = (rayon::current_num_threads() / threads).max(1);
    match rayon::ThreadPoolBuilder::new().num_threads(share).build() {
        Ok(pool) => pool.install(work),
        // Slower, with the same results.
        Err(_) => work(),
    }
}
