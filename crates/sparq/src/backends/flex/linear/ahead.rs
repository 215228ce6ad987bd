//! The weights that the next product will read.
//!
//! A decode step multiplies by the same weights in the same order as the step before. So each
//! product tells the waiting threads what follows it. They fetch it while the calling thread does
//! what lies between two products, when the memory would be idle.

use std::cell::RefCell;
use std::collections::HashMap;

use super::Matrix;
use crate::backends::flex::team::{self, Areas};

/// The most products that are remembered.
const MAX_PRODUCTS: usize = 4096;

/// The product that followed each one.
#[derive(Default)]
struct Order {
    next: HashMap<Areas, Areas>,
    last: Areas,
}

thread_local! {
    static ORDER: RefCell<Order> = RefCell::default();
}

/// Notes a product that was just computed, and tells the team which one to expect.
pub(super) fn note<T>(weights: &[Matrix<'_, T>]) {
    let mut areas = Areas::default();
    for (area, weight) in areas.iter_mut().zip(weights) {
        *area = weight.area();
    }
    if let Some(next) = ORDER.with_borrow_mut(|order| order.follow(areas)) {
        team::announce(next);
    }
}

impl Order {
    /// Returns the product that followed this one.
    fn follow(&mut self, areas: Areas) -> Option<Areas> {
        if self.next.len() == MAX_PRODUCTS {
            self.next.clear();
        }
        self.next.insert(self.last, areas);
        self.last = areas;
        self.next.get(&areas).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(index: usize) -> Areas {
        let mut areas = Areas::default();
        areas[0] = (index, 64);
        areas
    }

    #[test]
    fn repeated_order_is_learned() {
        let mut order = Order::default();
        for model in [0, 10] {
            let step = [model, model + 1, model + 2];
            for index in step {
                order.follow(product(index));
            }
            for _ in 0..2 {
                for (at, index) in step.into_iter().enumerate() {
                    let next = step[(at + 1) % step.len()];
                    assert_eq!(order.follow(product(index)), Some(product(next)));
                }
            }
        }
    }

    #[test]
    fn memory_of_the_order_is_bounded() {
        let mut order = Order::default();
        for index in 0..3 * MAX_PRODUCTS {
            order.follow(product(index));
        }
        assert!(order.next.len() <= MAX_PRODUCTS);
    }
}
