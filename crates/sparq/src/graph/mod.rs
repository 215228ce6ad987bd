//! A decode step captured as a graph of launches and replayed with one call: [`CapturedStep`].

mod tensors;

use std::cell::Cell;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};

use burn::backend::{
    Backend, BackendGraph, Dispatch, DispatchDevice, ExecutionError, TensorMetadata,
};

pub use self::tensors::StepTensors;
use crate::cache::{BufferId, CacheMark, RowTensors};
use crate::{KvCache, Method, SparqError, ops};

/// Runs of a step before its capture.
///
/// The first compiles kernels and tries variants of them. The others allocate the buffers of later
/// runs.
const WARM_UPS: usize = 3;

/// Held during a capture: a device refuses allocations of one capture during another.
static CAPTURING: Mutex<()> = Mutex::new(());

/// A decode step that runs as one captured graph of launches, on devices with graphs.
///
/// CUDA, Vulkan and WebGPU have them. Elsewhere the step runs uncaptured. A decode step of a model
/// is hundreds of small launches, which take longer to submit than to run. This type runs the step
/// a few times, captures its launches, and replays them with one call from then on, while the
/// caches grow. Positions and lengths are on the device
/// ([`CacheTensors::spans`](crate::ops::CacheTensors)), and launches are sized for the capacity of
/// the caches.
///
/// # When a step is captured
/// Steps of each method and each shape of inputs have a graph of their own, so that they can take
/// turns. All graphs are dropped where they cannot be replayed. The step then runs uncaptured, and
/// a later step is captured again. The caller sees no difference. This happens if
///
/// - a cache has to grow,
/// - a buffer of a cache is shared.
///
/// A step that sets the ranges of a sketch runs uncaptured too. It writes them in place, and the
/// next step is a replay. Sequences may join and leave the batch in between
/// ([`KvCache::write_sequence`], [`KvCache::set_idle`]).
///
/// A change between dense and sparse reads of a method captures its steps again.
///
/// The first thread that takes a step captures; steps on other threads run uncaptured, since each
/// thread has its own stream of launches. On CUDA and ROCm that thread must also have created
/// everything that the step reads, weights included
/// ([`can_be_captured`](crate::ops::can_be_captured)). This type checks it for the caches, and runs
/// steps on caches of another thread uncaptured.
///
/// # The step
/// `step(inputs, state, method)` appends positions to every cache of `state`, with
/// [`SparqAttention::decode`](crate::SparqAttention::decode) or with [`KvCache::prepare`] and
/// [`Method::decode`], and returns its outputs. It appends one position, or as many as
/// [`step_by`](Self::step_by) tells. It must be a function of its inputs and the caches: it may run
/// several times for one token (its appends are taken back), and a replay does not run it.
///
/// During a capture the step must not upload to the device or read back from it. If the device
/// refuses such a step, the contents of the buffers that it writes are lost
/// ([`SparqError::Capture`]). If the device captures an upload, as CUDA does, a replay repeats the
/// captured data.
///
/// While a thread captures, captures of other threads wait. No other work may use the device
/// meanwhile: on CUDA an allocation would abort the capture.
///
/// # Memory
/// The captured step owns the buffers of inputs and outputs. This type owns the caches (or an
/// exclusive borrow of them) and the step with its weights. So nothing that a replay reads or
/// writes can be freed or moved. Inputs are copied into the captured buffers, and outputs out of
/// them.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use sparq::{CapturedStep, KvCache, Method, SparqAttentionConfig, SparqConfig, SparqError};
///
/// let device = Device::default();
/// let attention = SparqAttentionConfig::new(64, 4, 2, 16).init(&device)?;
/// let method = Method::from(SparqConfig::new(4, 16));
/// let mut cache = attention.new_cache(1, 64, &method)?;
/// let random = |len| Tensor::<3>::random([1, len, 64], Distribution::Normal(0.0, 1.0), &device);
/// attention.forward(random(30), Some(&mut cache))?;
///
/// let decode = |x: &Tensor<3>, cache: &mut KvCache, method: &Method| {
///     attention.decode(x.clone(), cache, method)
/// };
/// let mut step = CapturedStep::new(cache, method, decode);
/// for _ in 0..50 {
///     let y = step.step(random(1))?; // also grows the cache
///     assert_eq!(y.dims(), [1, 1, 64]);
/// }
/// assert_eq!(step.into_state().len(), 80);
/// # Ok::<(), SparqError>(())
/// ```
pub struct CapturedStep<I, S, O, F> {
    /// Dropped first: a running replay writes to the fields below.
    captured: Vec<Captured<I, O>>,
    step: F,
    state: S,
    method: Method,
    /// Whether to capture. False also once the device turned out not to support it.
    capture: bool,
    /// The steps that turned out not to support it.
    refused: Vec<Kind>,
    /// The thread that captures: the first that took a step.
    thread: Option<ThreadId>,
}

/// A captured graph with its buffers.
struct Captured<I, O> {
    /// Dropped before the buffers below, which waits for running replays.
    graph: BackendGraph<Dispatch>,
    device: DispatchDevice,
    inputs: I,
    outputs: O,
    plan: Plan,
}

/// The method of a step, and the number of positions that it appends.
type Kind = (Method, usize);

/// The conditions under which launches can be replayed, beside the shapes of the inputs.
#[derive(PartialEq)]
struct Plan {
    kind: Kind,
    /// The buffers of every cache.
    buffers: Vec<BufferId>,
    /// Whether each cache is read sparsely, and whether an append writes codes.
    reads: Vec<(bool, bool)>,
}

/// One cache as a state.
impl AsMut<[KvCache]> for KvCache {
    fn as_mut(&mut self) -> &mut [KvCache] {
        std::slice::from_mut(self)
    }
}

impl<I, S, O, F> CapturedStep<I, S, O, F>
where
    I: StepTensors,
    S: AsMut<[KvCache]>,
    O: StepTensors,
    F: Fn(&I, &mut S, &Method) -> Result<O, SparqError>,
{
    /// Makes a step over the caches of `state`.
    ///
    /// The state is a [`KvCache`], an array or `Vec` of them, or any type that gives access to
    /// them, owned or as `&mut`.
    pub fn new(state: S, method: Method, step: F) -> Self {
        Self {
            captured: Vec::new(),
            step,
            state,
            method,
            capture: true,
            refused: Vec::new(),
            thread: None,
        }
    }

    /// Sets whether steps are captured where the device supports it. True at first.
    pub fn with_capture(mut self, capture: bool) -> Self {
        self.capture = capture;
        self
    }

    /// Returns whether steps are captured, as far as is known.
    ///
    /// False also once the device or the step turned out not to support it.
    pub fn captures(&self) -> bool {
        self.capture && !self.refused.contains(&(self.method, 1))
    }

    /// Returns whether the next step by one position would be a replay, as far as is known without
    /// its inputs.
    pub fn is_captured(&self) -> bool {
        self.is_captured_by(1)
    }

    /// Returns whether the next step by as many positions would be a replay, as far as is known
    /// without its inputs.
    pub fn is_captured_by(&self, positions: usize) -> bool {
        let kind = (self.method, positions);
        self.captured
            .iter()
            .any(|captured| captured.plan.kind == kind)
    }

    /// Returns the state with the caches.
    pub fn state(&self) -> &S {
        &self.state
    }

    /// Returns mutable access to the state. The next steps are captured again.
    pub fn state_mut(&mut self) -> &mut S {
        self.captured.clear();
        &mut self.state
    }

    /// Returns mutable access to the caches of the state.
    ///
    /// Nothing else in the state may be replaced. The next step is a replay only if all caches
    /// still have their buffers, as after [`KvCache::roll_back`], or after an append within the
    /// capacity.
    pub fn caches_mut(&mut self) -> &mut S {
        &mut self.state
    }

    /// Returns the method of the next steps.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Sets the method of the next steps. Captured steps of other methods are kept.
    pub fn set_method(&mut self, method: Method) {
        self.method = method;
    }

    /// Returns the state.
    pub fn into_state(self) -> S {
        // The graph first: dropping it waits for running replays.
        drop(self.captured);
        self.state
    }

    /// Takes one step: reads the inputs, appends one position to every cache, and returns the
    /// outputs.
    ///
    /// # Errors
    /// The errors of the step, and [`SparqError::Capture`] if the device fails to capture or
    /// replay.
    pub fn step(&mut self, inputs: I) -> Result<O, SparqError> {
        self.step_by(inputs, 1)
    }

    /// Takes a step that appends `positions` positions to every sequence of every cache.
    ///
    /// # Errors
    /// As [`CapturedStep::step`].
    pub fn step_by(&mut self, inputs: I, positions: usize) -> Result<O, SparqError> {
        let Some(plan) = self.plan(positions) else {
            return self.run(&inputs);
        };
        let current =
            |captured: &Captured<I, O>| captured.plan == plan && captured.inputs.is_like(&inputs);
        let found = self.captured.iter().position(current);
        if let Some(index) = found
            && self.owns_caches()
        {
            return self.replay(index, inputs);
        }
        // Graphs of buffers that are gone, and those that this one replaces.
        self.captured.retain(|captured| {
            captured.plan.buffers == plan.buffers
                && (captured.plan.kind != plan.kind || !captured.inputs.is_like(&inputs))
        });
        let can = |cache: &KvCache| match &cache.tensors().k {
            RowTensors::Float(rows) => ops::can_be_captured(rows),
            RowTensors::Int8 { scale, .. } => ops::can_be_captured(scale),
        };
        if !self.state.as_mut().iter().all(can) {
            self.capture = false;
            return self.run(&inputs);
        }
        match self.capture(inputs, plan)? {
            Attempt::Ran(outputs) => Ok(outputs),
            Attempt::Captured(captured) => {
                self.captured.push(captured);
                self.launch(self.captured.len() - 1)
            }
        }
    }

    /// Returns the conditions of the next step's launches; `None` if they cannot be captured. Drops
    /// the graphs if the buffers of the caches are about to change.
    fn plan(&mut self, positions: usize) -> Option<Plan> {
        let kind = (self.method, positions);
        if self.refused.contains(&kind) {
            return None;
        }
        // A thread has to wait for the last launches of another one. On CUDA, a wait for launches
        // outside of a capture aborts it.
        let here = thread::current().id();
        if !self.capture || *self.thread.get_or_insert(here) != here {
            self.captured.clear();
            return None;
        }
        let method = self.method;
        let caches = self.state.as_mut();
        // Also without any cache, and so without a device to capture on.
        if !caches
            .first()
            .is_some_and(|cache| ops::may_have_graphs(&cache.tensors().v_sum))
        {
            self.capture = false;
            return None;
        }
        let mut plan = Plan {
            kind,
            buffers: Vec::with_capacity(caches.len()),
            reads: Vec::with_capacity(caches.len()),
        };
        let mut refreshes = false;
        for cache in caches {
            let sparse = method.is_sparse(cache.config(), cache.len() + positions);
            let grows = cache.len() + positions > cache.capacity();
            if grows {
                self.captured.clear();
                return None;
            }
            refreshes |= sparse && cache.refresh_is_due(positions);
            plan.buffers.push(cache.buffer_id());
            plan.reads.push((sparse, cache.encodes()));
        }
        // The ranges are set in place. Other graphs of the same buffers stay valid.
        (!refreshes).then_some(plan)
    }

    /// Returns whether the caches alone own their buffers. An append would copy shared ones.
    fn owns_caches(&mut self) -> bool {
        self.state.as_mut().iter().all(KvCache::owns_buffers)
    }

    fn run(&mut self, inputs: &I) -> Result<O, SparqError> {
        (self.step)(inputs, &mut self.state, &self.method)
    }

    fn replay(&mut self, index: usize, inputs: I) -> Result<O, SparqError> {
        if self.captured[index].inputs.overwrite(inputs) {
            return self.launch(index);
        }
        // The step returned its inputs as outputs. They had to move, which invalidates the graph.
        let inputs = self.captured.swap_remove(index).inputs;
        self.run(&inputs)
    }

    /// Replays a captured step on the inputs in its buffers.
    fn launch(&mut self, index: usize) -> Result<O, SparqError> {
        let captured = &self.captured[index];
        // SAFETY:
        // - All memory that the graph reads and writes is alive and has not moved. Inputs and
        //   outputs belong to the captured step, and nothing else holds their buffers. The caches
        //   belong to this type. If a caller has changed or replaced one, its buffers have another
        //   identity, and the callers of this function checked that it is that of the graph. The
        //   step holds the weights. The device's allocator keeps the pages of temporary tensors for
        //   the graph.
        // - Nobody uses this memory at the same time: the caches alone own their buffers, which is
        //   checked before each replay.
        // - Inputs and outputs are copied by this thread, which is the one that captured.
        let replayed = unsafe { Dispatch::graph_replay(&captured.device, &captured.graph) };
        if let Err(error) = replayed {
            self.captured.clear();
            return Err(failed(&error));
        }
        for cache in self.state.as_mut() {
            cache.advance(captured.plan.kind.1);
        }
        Ok(captured.outputs.duplicate())
    }

    /// Captures the step. Afterwards the caches are as before, unless the step ran uncaptured.
    fn capture(&mut self, inputs: I, plan: Plan) -> Result<Attempt<I, O>, SparqError> {
        let inputs = inputs.duplicate();
        let marks: Vec<_> = self.state.as_mut().iter().map(KvCache::mark).collect();
        let device = self.device();
        let _alone = CAPTURING.lock().unwrap_or_else(PoisonError::into_inner);
        let scope = CaptureScope::new(&device);
        let attempt = self.capture_in(scope, &inputs, &marks, plan.kind.1);
        return_to(&mut self.state, &marks);
        match attempt {
            Ok(Some((graph, outputs))) => Ok(Attempt::Captured(Captured {
                graph,
                device,
                inputs,
                outputs,
                plan,
            })),
            Ok(None) => {
                self.capture = false;
                self.run(&inputs).map(Attempt::Ran)
            }
            Err(SparqError::NotCapturable { .. }) => {
                self.refused.push(plan.kind);
                self.run(&inputs).map(Attempt::Ran)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the graph and the outputs that it will write; `None` if the device has no graphs.
    fn capture_in(
        &mut self,
        scope: CaptureScope<'_>,
        inputs: &I,
        marks: &[CacheMark],
        positions: usize,
    ) -> Result<Option<(BackendGraph<Dispatch>, O)>, SparqError> {
        let mut state = Capturing::new(&mut self.state);
        let run = |state: &mut Capturing<'_, S>| {
            let outputs = (self.step)(inputs, state.0, &self.method)?;
            let mut caches = state.0.as_mut().iter().zip(marks);
            match caches.all(|(cache, mark)| cache.is_past(mark, positions)) {
                true => Ok(outputs),
                false => Err(SparqError::NotCapturable {
                    what: "a step that appends another number of positions than announced",
                }),
            }
        };
        if !scope.prepare() {
            return Ok(None);
        }
        for _ in 0..WARM_UPS {
            // Kept until the device is done, so that every run allocates all its buffers at once.
            let outputs = run(&mut state)?;
            Dispatch::sync(scope.device).map_err(|error| failed(&error))?;
            drop(outputs);
            return_to(state.0, marks);
        }
        if !scope.start() {
            return Ok(None);
        }
        let outputs = run(&mut state)?;
        let graph = scope.stop().map_err(|error| failed(&error))?;
        Ok(Some((graph, outputs)))
    }

    fn device(&mut self) -> DispatchDevice {
        let caches = self.state.as_mut();
        let cache = caches.first().expect("a plan has a cache");
        cache.tensors().v_sum.clone().into_dispatch().device()
    }
}

/// Takes back all appends since the marks.
fn return_to(state: &mut impl AsMut<[KvCache]>, marks: &[CacheMark]) {
    for (cache, mark) in state.as_mut().iter_mut().zip(marks) {
        cache.return_to(mark);
    }
}

/// The result of an attempt to capture a step.
enum Attempt<I, O> {
    /// A graph that has not run yet.
    Captured(Captured<I, O>),
    /// The outputs of the step, which ran uncaptured.
    Ran(O),
}

/// The state during a capture, which its caches know of.
struct Capturing<'a, S: AsMut<[KvCache]>>(&'a mut S);

impl<'a, S: AsMut<[KvCache]>> Capturing<'a, S> {
    fn new(state: &'a mut S) -> Self {
        let caches = state.as_mut().iter_mut();
        caches.for_each(|cache| cache.set_capturing(true));
        Self(state)
    }
}

impl<S: AsMut<[KvCache]>> Drop for Capturing<'_, S> {
    fn drop(&mut self) {
        let caches = self.0.as_mut().iter_mut();
        caches.for_each(|cache| cache.set_capturing(false));
    }
}

/// The period in which a device captures launches. It ends when this is dropped, at the latest.
struct CaptureScope<'a> {
    device: &'a DispatchDevice,
    open: Cell<bool>,
}

impl<'a> CaptureScope<'a> {
    fn new(device: &'a DispatchDevice) -> Self {
        Self {
            device,
            open: Cell::new(false),
        }
    }

    /// Prepares the device for the warm-up. Returns false if it cannot capture.
    fn prepare(&self) -> bool {
        self.open.set(Dispatch::graph_prepare(self.device).is_ok());
        self.open.get()
    }

    /// Starts the capture: launches no longer run. Returns false if the device cannot capture.
    fn start(&self) -> bool {
        Dispatch::graph_start_capture(self.device).is_ok()
    }

    fn stop(self) -> Result<BackendGraph<Dispatch>, ExecutionError> {
        self.open.set(false);
        Dispatch::graph_stop_capture(self.device)
    }
}

impl Drop for CaptureScope<'_> {
    fn drop(&mut self) {
        if self.open.get() {
            // The graph is not needed. An error means that no capture was running.
            let _ = Dispatch::graph_stop_capture(self.device);
        }
    }
}

impl<I, S: fmt::Debug, O, F> fmt::Debug for CapturedStep<I, S, O, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CapturedStep")
            .field("state", &self.state)
            .field("method", &self.method)
            .field("captured", &self.captured.len())
            .finish_non_exhaustive()
    }
}

fn failed(error: &ExecutionError) -> SparqError {
    SparqError::Capture {
        reason: error.to_string(),
    }
}
