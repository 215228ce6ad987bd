//! A decode step that is recorded once as a graph of launches and then replayed with a single call: [`CapturedStep`].

use std::cell::Cell;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};

use burn::backend::{
    Backend, BackendGraph, Dispatch, DispatchDevice, ExecutionError, TensorMetadata,
};
use burn::tensor::Tensor;
use burn::tensor::kind::Basic;

use crate::cache::CacheMark;
use crate::cache::buffers::{duplicate, overwrite};
use crate::{KvCache, Method, SparqError, ops};

/// How often a step runs before it is recorded. The first run compiles kernels and tries variants of them; the others allocate what every later run will.
const WARM_UPS: usize = 3;

/// Held while a step is recorded: what a device allocates for one recording would be refused by another.
static RECORDING: Mutex<()> = Mutex::new(());

/// Tensors that a step takes in or gives out: a [`Tensor`], a `Vec` or tuple of them, or `()`.
pub trait StepTensors: Sized {
    /// The same contents in buffers of their own.
    fn duplicate(&self) -> Self;

    /// Whether shapes, types and number are those of `other`.
    fn is_like(&self, other: &Self) -> bool;

    /// Takes over the contents of `from`, which [is like](StepTensors::is_like) this. Returns false where a buffer is also in other hands: it has then been
    /// exchanged for a new one.
    fn overwrite(&mut self, from: Self) -> bool;
}

impl<const D: usize, K: Basic> StepTensors for Tensor<D, K> {
    fn duplicate(&self) -> Self {
        duplicate(self)
    }

    fn is_like(&self, other: &Self) -> bool {
        self.dims() == other.dims()
            && self.dtype() == other.dtype()
            && self.device() == other.device()
    }

    fn overwrite(&mut self, from: Self) -> bool {
        let stays = self.can_mut();
        self.inplace(|tensor| overwrite(tensor, from));
        stays
    }
}

impl<T: StepTensors> StepTensors for Vec<T> {
    fn duplicate(&self) -> Self {
        self.iter().map(T::duplicate).collect()
    }

    fn is_like(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().zip(other).all(|(a, b)| a.is_like(b))
    }

    fn overwrite(&mut self, from: Self) -> bool {
        let pairs = self.iter_mut().zip(from);
        pairs.fold(true, |stay, (to, from)| to.overwrite(from) && stay)
    }
}

/// A step without inputs or outputs beside its state.
impl StepTensors for () {
    fn duplicate(&self) -> Self {}

    fn is_like(&self, _other: &Self) -> bool {
        true
    }

    fn overwrite(&mut self, _from: Self) -> bool {
        true
    }
}

/// Tuples, part by part.
macro_rules! tuple {
    ($($part:ident $index:tt),*) => {
        impl<$($part: StepTensors),*> StepTensors for ($($part,)*) {
            fn duplicate(&self) -> Self {
                ($(self.$index.duplicate(),)*)
            }

            fn is_like(&self, other: &Self) -> bool {
                true $(&& self.$index.is_like(&other.$index))*
            }

            fn overwrite(&mut self, from: Self) -> bool {
                true $(& self.$index.overwrite(from.$index))*
            }
        }
    };
}

tuple!(A 0);
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);

/// A step of generation that runs as one recorded graph where the device has graphs (CUDA, Vulkan, WebGPU), and as it is written elsewhere.
///
/// A decode step of a model is hundreds of small launches, and on a GPU handing them over takes longer than running them. This type runs the step a few times,
/// records its launches and from then on replays them all with one call, while the caches grow: positions and lengths are on the device
/// ([`CacheTensors::spans`](crate::ops::CacheTensors)), and launches are sized for the caches' capacity.
///
/// The first thread that takes a step is the one that records; steps on another run as they are written, since each thread has a stream of launches of its own.
/// On CUDA and ROCm all that the step reads has to be made by that thread, its weights too ([`can_be_captured`](crate::ops::can_be_captured)): of the caches this type sees to it, and runs
/// steps on those of another thread as they are written.
///
/// What a recording can't do happens outside of it, unseen by the caller. Where a cache has to grow, where the ranges of a sketch in bits are due, where the
/// method changes between dense and sparse, where inputs have a new shape, another thread comes or somebody else holds a buffer, the recording is dropped,
/// the step runs as it is written, and a later step is recorded anew.
///
/// # The step
/// `step(inputs, state, method)` appends one position to every cache of `state`, with [`SparqAttention::decode`](crate::SparqAttention::decode) or
/// with [`KvCache::prepare`] and [`Method::decode`], and returns its outputs. It may run several times for one token (what it appended is
/// taken back), and a replay does not run it at all: it has to be a function of its inputs and the caches. Inside a recording nothing may be uploaded to the device or read
/// back. A device that refuses a step which does loses the contents of the buffers that it would have written ([`SparqError::Capture`]); one that records an upload
/// (CUDA does) repeats what was uploaded then.
///
/// While one thread records, steps of other threads wait with their own recordings. Other work must not use the device then: on CUDA an allocation for it would
/// break the recording off.
///
/// # Memory
/// The recording owns the buffers of inputs and outputs, and this type owns the caches (or an exclusive borrow of them) and the step with the weights in it, so that
/// nothing a replay reads or writes can go away or move. Inputs are copied into the recording's buffer and outputs out of it: what comes back
/// is the caller's alone.
///
/// ```
/// use burn::tensor::{Device, Distribution, FloatDType, Tensor};
/// use sparq::{CapturedStep, KvCache, Method, RotaryConfig, SparqAttentionConfig, SparqConfig, SparqError};
///
/// let device = Device::default();
/// let attention = SparqAttentionConfig::new(64, 4, 2, 16).with_rotary(Some(RotaryConfig::new(16))).init(&device)?;
/// let method = Method::from(SparqConfig::new(4, 16));
/// let mut cache = attention.cache_config(1, 64, FloatDType::F32, &method).init(&device)?;
/// let random = |len| Tensor::<3>::random([1, len, 64], Distribution::Normal(0.0, 1.0), &device);
/// attention.forward(random(30), Some(&mut cache))?;
///
/// let mut step = CapturedStep::new(cache, method, |x: &Tensor<3>, cache: &mut KvCache, method: &Method| {
///     attention.decode(x.clone(), cache, method)
/// });
/// for _ in 0..50 {
///     let y = step.step(random(1))?; // grows the cache on the way
///     assert_eq!(y.dims(), [1, 1, 64]);
/// }
/// assert_eq!(step.into_state().len(), 80);
/// # Ok::<(), SparqError>(())
/// ```
pub struct CapturedStep<I, S, O, F> {
    /// Dropped first: a replay that still runs writes to what follows.
    recording: Option<Recording<I, O>>,
    step: F,
    state: S,
    method: Method,
    /// Whether to record at all; false also once the device or the step has turned out to be unable to.
    capture: bool,
    /// The thread that records: the first that took a step.
    home: Option<ThreadId>,
}

/// A recorded graph with what it was recorded for.
struct Recording<I, O> {
    /// Dropped before the buffers below; that waits for replays under way.
    graph: BackendGraph<Dispatch>,
    device: DispatchDevice,
    inputs: I,
    outputs: O,
    plan: Plan,
}

/// What the launches of a step depend on, beside the shapes of its inputs: the capacity of every cache, and whether it is read sparsely.
#[derive(PartialEq)]
struct Plan(Vec<(usize, bool)>);

/// A cache as a state of one.
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
    /// A step over the caches of `state`: a [`KvCache`], an array or `Vec` of them, or a type of one's own that hands them out, owned or as `&mut`.
    pub fn new(state: S, method: Method, step: F) -> Self {
        Self {
            recording: None,
            step,
            state,
            method,
            capture: true,
            home: None,
        }
    }

    /// Sets whether steps are recorded where the device can; true at first.
    pub fn with_capture(mut self, capture: bool) -> Self {
        self.capture = capture;
        self
    }

    /// Whether steps are recorded, as far as is known: false also once device or step have turned out to be unable to.
    pub fn captures(&self) -> bool {
        self.capture
    }

    /// Whether the next step would be a replay, as far as is known before its inputs.
    pub fn is_captured(&self) -> bool {
        self.recording.is_some()
    }

    /// The caches and what else the state holds.
    pub fn state(&self) -> &S {
        &self.state
    }

    /// The state, to change it as one likes; the next steps are recorded anew.
    pub fn state_mut(&mut self) -> &mut S {
        self.recording = None;
        &mut self.state
    }

    /// The state.
    pub fn into_state(self) -> S {
        // The graph first: dropping it waits for replays under way.
        drop(self.recording);
        self.state
    }

    /// Takes one step: reads the inputs, appends one position to every cache and returns the outputs.
    ///
    /// # Errors
    /// What the step itself returns; [`SparqError::Capture`] where the device refuses to record or replay.
    pub fn step(&mut self, inputs: I) -> Result<O, SparqError> {
        let Some(plan) = self.plan() else {
            // The caches' buffers are about to change.
            self.recording = None;
            return self.run(&inputs);
        };
        let current = |recording: &Recording<I, O>| {
            recording.plan == plan && recording.inputs.is_like(&inputs)
        };
        if self.recording.as_ref().is_some_and(current) && self.owns_caches() {
            return self.replay(inputs);
        }
        self.recording = None;
        let can = |cache: &KvCache| ops::can_be_captured(&cache.tensors().k);
        if !self.state.as_mut().iter().all(can) {
            self.capture = false;
            return self.run(&inputs);
        }
        match self.record(inputs, plan)? {
            Recorded::Ran(outputs) => Ok(outputs),
            Recorded::As(recording) => {
                self.recording = Some(recording);
                self.launch()
            }
        }
    }

    /// What the next step's launches depend on; `None` where they can't be recorded.
    fn plan(&mut self) -> Option<Plan> {
        // What one thread has launched last, another has to wait for, and a wait for what is outside of a recording breaks it off (on CUDA).
        let here = thread::current().id();
        if !self.capture || *self.home.get_or_insert(here) != here {
            return None;
        }
        let method = self.method;
        let caches = self.state.as_mut();
        // Also where there is no cache, and so no device to record on.
        if !caches
            .first()
            .is_some_and(|cache| ops::may_have_graphs(&cache.tensors().k))
        {
            self.capture = false;
            return None;
        }
        let plan: Option<Vec<_>> = caches
            .iter()
            .map(|cache| {
                let sparse = method.is_sparse(cache.config(), cache.len() + 1);
                let grows = cache.len() == cache.capacity();
                let due = sparse && cache.refresh_is_due(1);
                (!grows && !due).then(|| (cache.capacity(), sparse))
            })
            .collect();
        plan.map(Plan)
    }

    /// Whether the caches' buffers are in no one else's hands: an append would copy them, and leave the others as they are.
    fn owns_caches(&mut self) -> bool {
        self.state.as_mut().iter().all(KvCache::owns_buffers)
    }

    /// The step as it is written.
    fn run(&mut self, inputs: &I) -> Result<O, SparqError> {
        (self.step)(inputs, &mut self.state, &self.method)
    }

    fn replay(&mut self, inputs: I) -> Result<O, SparqError> {
        let mut recording = self.recording.take().expect("checked by the caller");
        if recording.inputs.overwrite(inputs) {
            self.recording = Some(recording);
            return self.launch();
        }
        // The step gave its inputs out again, so that they had to move from under the graph, which ends here.
        let inputs = recording.inputs;
        self.run(&inputs)
    }

    /// Launches the recording on the inputs that are in its buffers.
    fn launch(&mut self) -> Result<O, SparqError> {
        let recording = self.recording.as_ref().expect("checked by the callers");
        // Safety:
        // - What the graph reads and writes is alive and where it was: the inputs and outputs are the recording's and nobody else sees their buffers; the caches
        //   are this type's, and are handed out mutably only after the graph is gone; the weights are in the step. What the step made and dropped
        //   on its way lies on pages that the device's allocator keeps for the graph.
        // - Nobody uses them at the same time: the caches' buffers are in no one else's hands, as checked before each replay.
        // - Inputs and outputs are copied by this thread, which is the one that recorded.
        let replayed = unsafe { Dispatch::graph_replay(&recording.device, &recording.graph) };
        if let Err(error) = replayed {
            self.recording = None;
            return Err(refused(&error));
        }
        for cache in self.state.as_mut() {
            cache.advance();
        }
        Ok(recording.outputs.duplicate())
    }

    /// Records the step. Afterwards the caches are as they were, unless it ran after all.
    fn record(&mut self, inputs: I, plan: Plan) -> Result<Recorded<I, O>, SparqError> {
        let inputs = inputs.duplicate();
        let marks: Vec<_> = self.state.as_mut().iter().map(KvCache::mark).collect();
        let device = self.device();
        let _alone = RECORDING.lock().unwrap_or_else(PoisonError::into_inner);
        let recorded = self.record_in(Window::new(&device), &inputs, &marks);
        return_to(&mut self.state, &marks);
        match recorded {
            Ok(Some((graph, outputs))) => Ok(Recorded::As(Recording {
                graph,
                device,
                inputs,
                outputs,
                plan,
            })),
            Ok(None) | Err(SparqError::NotCapturable { .. }) => {
                self.capture = false;
                self.run(&inputs).map(Recorded::Ran)
            }
            Err(error) => Err(error),
        }
    }

    /// The graph and the outputs that it will write; `None` where the device has no graphs.
    fn record_in(
        &mut self,
        window: Window<'_>,
        inputs: &I,
        marks: &[CacheMark],
    ) -> Result<Option<(BackendGraph<Dispatch>, O)>, SparqError> {
        let mut state = Launching::new(&mut self.state);
        let run = |state: &mut Launching<'_, S>| {
            let outputs = (self.step)(inputs, state.0, &self.method)?;
            let mut caches = state.0.as_mut().iter().zip(marks);
            match caches.all(|(cache, mark)| cache.is_one_past(mark)) {
                true => Ok(outputs),
                false => Err(SparqError::NotCapturable {
                    what: "a step that does not append one position to every cache",
                }),
            }
        };
        if !window.prepare() {
            return Ok(None);
        }
        for _ in 0..WARM_UPS {
            // Kept until the device is done, so that every run has all its buffers at once.
            let outputs = run(&mut state)?;
            Dispatch::sync(window.device).map_err(|error| refused(&error))?;
            drop(outputs);
            return_to(state.0, marks);
        }
        if !window.start() {
            return Ok(None);
        }
        let outputs = run(&mut state)?;
        let graph = window.stop().map_err(|error| refused(&error))?;
        Ok(Some((graph, outputs)))
    }

    fn device(&mut self) -> DispatchDevice {
        let caches = self.state.as_mut();
        let cache = caches.first().expect("a plan has a cache");
        cache.tensors().k.clone().into_dispatch().device()
    }
}

/// Takes back what was appended since.
fn return_to(state: &mut impl AsMut<[KvCache]>, marks: &[CacheMark]) {
    for (cache, mark) in state.as_mut().iter_mut().zip(marks) {
        cache.return_to(mark);
    }
}

/// What came of recording a step.
enum Recorded<I, O> {
    /// A graph that has not run yet.
    As(Recording<I, O>),
    /// The outputs of the step, which ran as it is written.
    Ran(O),
}

/// The caches of a state while what is launched on them will be replayed.
struct Launching<'a, S: AsMut<[KvCache]>>(&'a mut S);

impl<'a, S: AsMut<[KvCache]>> Launching<'a, S> {
    fn new(state: &'a mut S) -> Self {
        let caches = state.as_mut().iter_mut();
        caches.for_each(|cache| cache.set_capturing(true));
        Self(state)
    }
}

impl<S: AsMut<[KvCache]>> Drop for Launching<'_, S> {
    fn drop(&mut self) {
        let caches = self.0.as_mut().iter_mut();
        caches.for_each(|cache| cache.set_capturing(false));
    }
}

/// The window in which a device records what is launched. However it is left, the device launches again afterwards.
struct Window<'a> {
    device: &'a DispatchDevice,
    open: Cell<bool>,
}

impl<'a> Window<'a> {
    fn new(device: &'a DispatchDevice) -> Self {
        Self {
            device,
            open: Cell::new(false),
        }
    }

    /// Announces the window: what runs from here on is its warm-up. False where that is not possible.
    fn prepare(&self) -> bool {
        self.open.set(Dispatch::graph_prepare(self.device).is_ok());
        self.open.get()
    }

    /// From here on launches are recorded and do not run. False where that is not possible.
    fn start(&self) -> bool {
        Dispatch::graph_start_capture(self.device).is_ok()
    }

    fn stop(self) -> Result<BackendGraph<Dispatch>, ExecutionError> {
        self.open.set(false);
        Dispatch::graph_stop_capture(self.device)
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        if self.open.get() {
            // Nobody waits for a graph; an error says that there was nothing to close.
            let _ = Dispatch::graph_stop_capture(self.device);
        }
    }
}

impl<I, S: fmt::Debug, O, F> fmt::Debug for CapturedStep<I, S, O, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CapturedStep")
            .field("state", &self.state)
            .field("method", &self.method)
            .field("captured", &self.recording.is_some())
            .finish_non_exhaustive()
    }
}

fn refused(error: &ExecutionError) -> SparqError {
    SparqError::Capture {
        reason: error.to_string(),
    }
}
