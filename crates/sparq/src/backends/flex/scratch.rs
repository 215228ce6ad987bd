//! Working memory of a SparQ step, kept from one step to the next.

use std::cell::Cell;

use super::query::Columns;
use super::sketch::BLOCK;
use super::topk::TopK;

/// Working memory for some batch heads.
///
/// Each thread keeps its own between steps: fresh memory costs a page fault per 4 KiB, which takes
/// longer than the scores themselves.
#[derive(Default)]
pub(super) struct Scratch {
    weights: Vec<f32>,
    statistics: Vec<f32>,
    keys: Vec<u32>,
    selected: Vec<Vec<u32>>,
    top_k: Vec<TopK>,
}

/// The buffers of a [`Scratch`], cut to the size of a problem.
pub(super) struct Buffers<'a> {
    /// [blocks, columns, BLOCK].
    pub(super) weights: &'a mut [f32],
    /// [blocks, 2, heads].
    pub(super) statistics: &'a mut [f32],
    /// [blocks, BLOCK].
    pub(super) keys: &'a mut [u32],
    /// One for each batch head.
    pub(super) top_k: &'a mut [TopK],
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

impl Scratch {
    /// Takes the thread's working memory. While one head waits for other threads, its thread may
    /// start on another head, and that one gets new memory.
    pub(super) fn take() -> Box<Self> {
        SCRATCH.take().unwrap_or_default()
    }

    pub(super) fn put_back(self: Box<Self>) {
        SCRATCH.set(Some(self));
    }

    /// Takes an empty list of selected positions for each head.
    pub(super) fn take_selected(&mut self, heads: usize) -> Vec<Vec<u32>> {
        let mut selected = std::mem::take(&mut self.selected);
        selected.iter_mut().for_each(Vec::clear);
        selected.resize_with(heads, Vec::new);
        selected
    }

    pub(super) fn put_back_selected(&mut self, selected: Vec<Vec<u32>>) {
        self.selected = selected;
    }

    pub(super) fn buffers(&mut self, blocks: usize, heads: usize, columns: Columns) -> Buffers<'_> {
        fn cut<T: Default + Clone>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
            if memory.len() < len {
                memory.resize(len, T::default());
            }
            &mut memory[..len]
        }
        if self.top_k.len() < heads {
            self.top_k.resize_with(heads, TopK::default);
        }
        Buffers {
            weights: cut(&mut self.weights, blocks * columns.count() * BLOCK),
            statistics: cut(&mut self.statistics, blocks * columns.statistics()),
            keys: cut(&mut self.keys, blocks * BLOCK),
            top_k: &mut self.top_k[..heads],
        }
    }
}
