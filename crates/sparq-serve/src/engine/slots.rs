//! Sequences that decode together in one cache: [`Slots`].

use std::sync::Arc;

use burn::tensor::{Int, Tensor};
use sparq::{CapturedStep, Method, SparqError};
use sparq_models::{CausalLm, ModelCache, MostProbable};

use super::device::{download, guarded, unreadable, upload};
use super::extent::{Extent, ExtentLimits};
use super::request::EngineError;
use super::sequence::Sequence;
use super::{Decoding, Finish, Shared};

/// Logits [B, 1, vocab] and their most probable tokens.
type Outputs = (Tensor<3>, MostProbable);
/// The decode step of a batch, which takes tokens [B, 1].
type Step = CapturedStep<Tensor<2, Int>, ModelCache, Outputs, Decode>;
type Decode = Box<dyn Fn(&Tensor<2, Int>, &mut ModelCache, &Method) -> Result<Outputs, SparqError>>;

/// The sequences of one method, in the slots of one cache.
///
/// A step is one call of the model. On devices with graphs it is captured, and replayed while
/// sequences join and leave: a slot that is not in use is idle in the cache
/// ([`KvCache::set_idle`](sparq::KvCache::set_idle)). The number of slots and their positions
/// follow the demand, and a change of them needs another capture.
pub(super) struct Slots {
    shared: Arc<Shared>,
    method: Method,
    limits: ExtentLimits,
    batch: Option<Batch>,
    /// The extent that holds all admitted requests.
    target: Extent,
}

/// Slots of a cache. Nothing runs in an idle one.
struct Batch {
    step: Step,
    sequences: Vec<Option<Sequence>>,
    positions: usize,
    /// The step after the last one whose tokens the host knows, if the device has it already.
    queued: Option<Queued>,
}

/// A step that the device has been given.
struct Queued {
    outputs: Outputs,
    /// Whether each slot is in use by the same sequence since.
    rows: Vec<bool>,
}

/// The result of a step.
pub(super) struct Rows {
    /// The most probable token of each slot, unless its logits have none.
    most_probable: Vec<Option<u32>>,
    /// Logits [B, vocab], if a sequence asks for them.
    logits: Vec<f32>,
    vocab: usize,
    /// The slots whose sequences took the step.
    pub slots: Vec<usize>,
}

/// The next token of a sequence, or what it is sampled from.
enum Next<'a> {
    Token(u32),
    Logits(&'a mut [f32]),
}

impl Rows {
    /// Returns the row of a slot. A sequence that asks for logits, or has no most probable token,
    /// gets logits.
    fn next(&mut self, slot: usize, asks: bool) -> Next<'_> {
        match self.most_probable[slot] {
            Some(token) if !asks => Next::Token(token),
            _ => Next::Logits(&mut self.logits[slot * self.vocab..(slot + 1) * self.vocab]),
        }
    }
}

/// Sequences that lost their cache, and the reason.
pub(super) struct Lost {
    pub sequences: Vec<Sequence>,
    pub error: EngineError,
}

impl Batch {
    /// Gives the device a step that appends the last token of every sequence.
    fn launch(&mut self, model: &dyn CausalLm) -> Result<Queued, SparqError> {
        let token = |slot: &Option<Sequence>| slot.as_ref().map_or(0, Sequence::next);
        let tokens: Vec<u32> = self.sequences.iter().map(token).collect();
        let rows = self.sequences.iter().map(Option::is_some).collect();
        let outputs = self.step.step(upload(model, &tokens, [tokens.len(), 1]))?;
        Ok(Queued { outputs, rows })
    }

    /// Returns whether the most probable tokens of a step with these rows are those of the next.
    fn goes_on(&self, rows: &[bool]) -> bool {
        let mut slots = std::iter::zip(&self.sequences, rows);
        slots.all(|(sequence, &row)| match sequence {
            Some(sequence) => row && !sequence.needs_logits() && sequence.left() > 1,
            None => true,
        })
    }
}

impl Slots {
    /// Makes slots for the engine's first way to decode, if the configuration wants them and it is
    /// one of steps.
    pub fn new(shared: &Arc<Shared>) -> Option<Self> {
        let config = &shared.config;
        let Some(&Decoding::Steps(method)) = config.decodings.first() else {
            return None;
        };
        config.slots.then(|| Self {
            shared: Arc::clone(shared),
            method,
            limits: ExtentLimits {
                size: shared.sizes[0],
                max_batch: config.max_batch,
                context: config.context,
            },
            batch: None,
            target: Extent::default(),
        })
    }

    /// Returns whether answers of this kind can have a slot.
    pub fn takes(&self, decoding: Decoding) -> bool {
        decoding == Decoding::Steps(self.method)
    }

    pub fn limits(&self) -> &ExtentLimits {
        &self.limits
    }

    /// The slots of the cache.
    pub fn extent(&self) -> Extent {
        self.batch
            .as_ref()
            .map_or(Extent::default(), |batch| Extent {
                slots: batch.sequences.len(),
                positions: batch.positions,
            })
    }

    /// The extent that holds all admitted requests.
    pub fn target(&self) -> Extent {
        self.target
    }

    /// The bytes of the cache, or those it grows to for admitted requests.
    pub fn bytes(&self) -> usize {
        let [now, later] = [self.extent(), self.target].map(|extent| self.limits.bytes(extent));
        now.max(later)
    }

    /// The slots in use.
    pub fn active(&self) -> Vec<usize> {
        let sequences = self.batch.iter().flat_map(|batch| &batch.sequences);
        let active = sequences.enumerate().filter(|(_, slot)| slot.is_some());
        active.map(|(slot, _)| slot).collect()
    }

    /// The slots in use, and the most positions that one of their sequences may have.
    pub fn demand(&self) -> Extent {
        let sequences = self
            .batch
            .iter()
            .flat_map(|batch| &batch.sequences)
            .flatten();
        sequences.fold(Extent::default(), |all, sequence| Extent {
            slots: all.slots + 1,
            positions: all.positions.max(sequence.positions()),
        })
    }

    /// Returns whether the device has a step whose tokens the host does not know.
    pub fn has_queued(&self) -> bool {
        (self.batch.as_ref()).is_some_and(|batch| batch.queued.is_some())
    }

    /// Sets the extent that holds all admitted requests. A smaller one than now takes effect at
    /// once, a larger one when a sequence joins. No step may be queued.
    pub fn set_target(&mut self, target: Extent) -> Result<(), Lost> {
        self.target = target;
        match self.limits.bytes(target) < self.limits.bytes(self.extent()) {
            true => self.resize(),
            false => Ok(()),
        }
    }

    /// Moves the sequences to a cache of the target's extent. Any graph of the old one is gone.
    fn resize(&mut self) -> Result<(), Lost> {
        let target = self.target;
        tracing::debug!("slots: {:?}, then {target:?}", self.extent());
        let Some(Batch {
            step, sequences, ..
        }) = self.batch.take()
        else {
            return self.allocate().map_err(|error| Lost {
                sequences: Vec::new(),
                error,
            });
        };
        let mut cache = step.into_state();
        let active = |(slot, sequence): (usize, Option<Sequence>)| Some((slot, sequence?));
        let (order, sequences): (Vec<_>, Vec<_>) =
            sequences.into_iter().enumerate().filter_map(active).unzip();
        if target.slots == 0 {
            return Ok(());
        }
        let mut order: Vec<Option<usize>> = order.into_iter().map(Some).collect();
        order.resize(target.slots, None);
        if let Err(error) = guarded(|| cache.rearrange(&order, target.positions)) {
            return Err(Lost { sequences, error });
        }
        let mut slots: Vec<Option<Sequence>> = sequences.into_iter().map(Some).collect();
        slots.resize_with(target.slots, || None);
        self.batch = Some(self.batch_of(cache, slots));
        Ok(())
    }

    /// Makes a cache of idle slots in the target's extent.
    fn allocate(&mut self) -> Result<(), EngineError> {
        let (Extent { slots, positions }, dtype) = (self.target, self.shared.config.dtype);
        if slots == 0 {
            return Ok(());
        }
        let model = &self.shared.model;
        let cache = guarded(|| {
            let smallest = model.new_cache(1, 1, dtype, &self.method)?;
            smallest.select(&vec![None; slots], positions)
        })?;
        let none = (0..slots).map(|_| None).collect();
        self.batch = Some(self.batch_of(cache, none));
        Ok(())
    }

    fn batch_of(&self, cache: ModelCache, sequences: Vec<Option<Sequence>>) -> Batch {
        let shared = Arc::clone(&self.shared);
        let decode: Decode = Box::new(move |tokens, cache, method| {
            let logits = shared.model.decode(tokens.clone(), cache, method)?;
            let most_probable = MostProbable::of(&logits);
            Ok((logits, most_probable))
        });
        let capture = self.shared.model.is_capturable();
        Batch {
            step: CapturedStep::new(cache, self.method, decode).with_capture(capture),
            sequences,
            positions: self.target.positions,
            queued: None,
        }
    }

    /// Makes room for the admitted requests, before their sequences [join](Self::join). No step may
    /// be queued.
    pub fn make_room(&mut self) -> Result<(), Lost> {
        match self.extent() == self.target {
            true => Ok(()),
            false => self.resize(),
        }
    }

    /// Puts the answers to a prompt into slots, each with a copy of its cache. All of them join, or
    /// none.
    pub fn join(
        &mut self,
        sequences: Vec<Sequence>,
        prompt: &ModelCache,
    ) -> Result<(), EngineError> {
        let full = || EngineError::Failed {
            reason: "expected a slot for each admitted answer, found none".into(),
        };
        let batch = self.batch.as_mut().ok_or_else(full)?;
        let mut free = (0..batch.sequences.len()).filter(|&slot| batch.sequences[slot].is_none());
        let slots: Vec<usize> = free.by_ref().take(sequences.len()).collect();
        if slots.len() < sequences.len() {
            return Err(full());
        }
        let cache = batch.step.caches_mut();
        let written = guarded(|| {
            let mut slots = slots.iter();
            slots.try_for_each(|&slot| cache.write_sequence(slot, prompt))
        });
        if let Err(error) = written {
            guarded(|| slots.iter().try_for_each(|&slot| cache.set_idle(slot)))?;
            return Err(error);
        }
        for (slot, sequence) in slots.into_iter().zip(sequences) {
            batch.sequences[slot] = Some(sequence);
        }
        Ok(())
    }

    /// Returns the sequence of a slot in use.
    pub fn sequence(&mut self, slot: usize) -> Option<&mut Sequence> {
        self.batch.as_mut()?.sequences.get_mut(slot)?.as_mut()
    }

    /// Gives a sequence the row of its step. Returns whether it ends the answer.
    pub fn accept(&mut self, slot: usize, rows: &mut Rows) -> Result<Option<Finish>, EngineError> {
        let Some(Batch {
            step, sequences, ..
        }) = &mut self.batch
        else {
            return Ok(None);
        };
        let Some(sequence) = &mut sequences[slot] else {
            return Ok(None);
        };
        sequence.count_step(step.state(), &self.shared.metrics);
        match rows.next(slot, sequence.needs_logits()) {
            Next::Token(token) => sequence.accept_token(token),
            Next::Logits(logits) => sequence.accept(logits),
        }
    }

    /// Returns the cache of all slots.
    pub fn cache(&self) -> Option<&ModelCache> {
        self.batch.as_ref().map(|batch| batch.step.state())
    }

    /// Returns a copy of the cache of a slot in use.
    pub fn copy_of(&self, slot: usize) -> Result<Option<ModelCache>, SparqError> {
        let cache = self.cache();
        cache
            .map(|cache| cache.select(&[Some(slot)], 0))
            .transpose()
    }

    /// Takes the sequence of a slot, which is idle then.
    pub fn leave(&mut self, slot: usize) -> Option<Sequence> {
        let batch = self.batch.as_mut()?;
        let sequence = batch.sequences.get_mut(slot)?.take();
        if let Some(queued) = &mut batch.queued {
            queued.rows[slot] = false;
        }
        let cache = batch.step.caches_mut();
        if let Err(error) = guarded(|| cache.set_idle(slot)) {
            tracing::warn!("a slot cannot be made idle: {error}");
        }
        sequence
    }

    /// Takes a decode step of the slots in use, or returns the one that is queued.
    ///
    /// If `ahead`, and if every sequence takes the most probable token, the device is given the
    /// next step before the host waits for this one. The row of a sequence that ends with this step
    /// is then lost in the next, and its slot has one more position until it leaves.
    pub fn step(&mut self, ahead: bool) -> Result<Rows, EngineError> {
        let model = &*self.shared.model;
        let vocab = model.vocab_size();
        let Some(batch) = &mut self.batch else {
            return Ok(Rows {
                most_probable: Vec::new(),
                logits: Vec::new(),
                slots: Vec::new(),
                vocab,
            });
        };
        guarded(|| {
            let Queued {
                outputs: (logits, most_probable),
                rows,
            } = match batch.queued.take() {
                Some(queued) => queued,
                None => batch.launch(model)?,
            };
            let ahead = ahead && batch.goes_on(&rows);
            let ids = most_probable.ids();
            let step = &mut batch.step;
            let (found, next) =
                most_probable.read_while(|| ahead.then(|| step.step(ids)).transpose());
            let found = found.map_err(unreadable)?;
            batch.queued = next?.map(|outputs| Queued {
                outputs,
                rows: rows.clone(),
            });
            let slots: Vec<usize> = (0..rows.len()).filter(|&slot| rows[slot]).collect();
            if batch.queued.is_some() && slots.iter().any(|&slot| found[slot].is_none()) {
                // The next step has appended another token than the one that is sampled.
                return Err(unreadable("NaN or infinity"));
            }
            let asks = |&slot: &usize| {
                let sequence = batch.sequences[slot].as_ref();
                found[slot].is_none() || sequence.is_some_and(Sequence::needs_logits)
            };
            let logits = match slots.iter().any(asks) {
                true => download(logits, model, rows.len())?,
                false => Vec::new(),
            };
            Ok(Rows {
                most_probable: found,
                logits,
                slots,
                vocab,
            })
        })
    }

    /// Takes all sequences out, each with a cache of its own, as before a step that failed. Those
    /// whose cache cannot be copied are lost.
    pub fn dissolve(&mut self) -> (Vec<(Sequence, ModelCache)>, Option<Lost>) {
        let slots = self.active();
        let Some(batch) = self.batch.take() else {
            return (Vec::new(), None);
        };
        let cache = batch.step.into_state();
        let sequences: Vec<Sequence> = batch.sequences.into_iter().flatten().collect();
        let copied = guarded(|| {
            let mut copies: Vec<ModelCache> = (slots.iter())
                .map(|_| ModelCache::new(Vec::new()))
                .collect();
            // Layer by layer: memory holds at most one of them twice.
            for layer in cache.layers {
                for ((slot, copy), sequence) in slots.iter().zip(&mut copies).zip(&sequences) {
                    let mut layer = layer.select(&[Some(*slot)], sequence.positions())?;
                    layer.truncate(sequence.cached());
                    copy.layers.push(layer);
                }
            }
            Ok(copies)
        });
        match copied {
            Ok(copies) => (sequences.into_iter().zip(copies).collect(), None),
            Err(error) => (Vec::new(), Some(Lost { sequences, error })),
        }
    }
}
