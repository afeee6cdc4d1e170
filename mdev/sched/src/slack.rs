//! Stage 4, schedule: work that runs in what reserved work leaves free, in its order, and the first of it that
//! fits.
//!
//! A heap by key, in which every place also knows the least that anything below it needs: what cannot fit is
//! passed by without being looked at, however many tenants wait with jobs that are too long.

use crate::heap::IndexedHeap;
use alloc::{vec, vec::Vec};

/// Places that a search can have put off: one per level of a heap of all tenants, and then some.
const PUT_OFF: usize = 40;

/// Clear time, as it is expected and at worst, ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clear {
    pub(crate) expected: u64,
    pub(crate) worst: u64,
}

impl Clear {
    /// Fits anywhere.
    pub(crate) const NONE: Self = Self { expected: 0, worst: 0 };

    fn least(self, other: Self) -> Self {
        Self { expected: self.expected.min(other.expected), worst: self.worst.min(other.worst) }
    }
    pub(crate) fn fits(self, into: Self) -> bool {
        self.expected <= into.expected && self.worst <= into.worst
    }
}

/// Indices `0..n`, each with a key and what it needs.
#[derive(Debug)]
pub(crate) struct SlackHeap<K> {
    order: IndexedHeap<K>,
    /// The least need at and below each place of `order`.
    least: Vec<Clear>,
    /// By index.
    needs: Vec<Clear>,
}

impl<K: Ord + Copy> SlackHeap<K> {
    pub(crate) fn new(n: usize) -> Self {
        Self {
            order: IndexedHeap::new(n),
            least: Vec::with_capacity(n),
            needs: vec![Clear::NONE; n],
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The smallest key with its index.
    pub(crate) fn peek(&self) -> Option<(usize, K)> {
        self.order.peek()
    }

    /// Puts `index` in, or changes its key and need. An index beyond the heap's size is ignored.
    pub(crate) fn set(&mut self, index: usize, key: K, need: Clear) {
        let Some(changed) = self.order.set(index, key) else {
            return;
        };
        self.needs[index] = need;
        self.least.resize(self.order.len(), need);
        self.renew(changed);
    }

    /// Takes `index` out, if it is in.
    pub(crate) fn remove(&mut self, index: usize) {
        let changed = self.order.remove(index);
        let end = self.order.len();
        if end < self.least.len() {
            self.least.truncate(end);
            // What was above the last place has less below it now.
            self.renew(end.saturating_sub(1) / 2);
        }
        if let Some(changed) = changed {
            self.renew(changed);
        }
    }

    /// The index with the smallest key whose need fits into `clear` and that `takes` accepts.
    pub(crate) fn first(
        &self,
        clear: Clear,
        mut takes: impl FnMut(usize) -> bool,
    ) -> Option<(usize, K)> {
        let mut put_off = [0u32; PUT_OFF];
        let mut waiting = 1;
        let mut best: Option<(K, u32)> = None;
        while waiting > 0 {
            waiting -= 1;
            let at = put_off[waiting] as usize;
            let (Some(entry), Some(least)) = (self.order.entry(at), self.least.get(at)) else {
                continue;
            };
            if !least.fits(clear) || best.is_some_and(|b| b <= entry) {
                continue;
            }
            let index = entry.1 as usize;
            if self.needs[index].fits(clear) && takes(index) {
                // All below has larger keys.
                best = Some(entry);
                continue;
            }
            // The left child is looked at first. Two more than were taken out, once per level.
            for child in [2 * at + 2, 2 * at + 1] {
                if let (Some(slot), true) = (put_off.get_mut(waiting), child < self.order.len()) {
                    *slot = child as u32;
                    waiting += 1;
                }
            }
        }
        best.map(|(k, i)| (i as usize, k))
    }

    /// Works out the least need again, at `at` and above.
    fn renew(&mut self, mut at: usize) {
        loop {
            let Some((_, index)) = self.order.entry(at) else {
                return;
            };
            let mut least = self.needs[index as usize];
            for child in [2 * at + 1, 2 * at + 2] {
                if let Some(&below) = self.least.get(child) {
                    least = least.least(below);
                }
            }
            self.least[at] = least;
            if at == 0 {
                return;
            }
            at = (at - 1) / 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(
            ops in prop::collection::vec((0usize..40, prop::option::of((0u32..50, 0u64..9, 0u64..9))), 0..300),
            clear in (0u64..9, 0u64..9),
        ) {
            let clear = Clear { expected: clear.0, worst: clear.1 };
            let mut heap = SlackHeap::new(36);
            let mut model = alloc::collections::BTreeMap::new();
            for (i, op) in ops {
                if let Some((k, expected, worst)) = op {
                    let need = Clear { expected, worst };
                    heap.set(i, k, need);
                    if i < 36 {
                        model.insert(i, (k, need));
                    }
                } else {
                    heap.remove(i);
                    model.remove(&i);
                }
                let odd = |i: usize| i % 3 != 1;
                let scan = |takes: &dyn Fn(usize) -> bool, clear: Clear| {
                    model
                        .iter()
                        .filter(|(i, (_, need))| need.fits(clear) && takes(**i))
                        .map(|(&i, &(k, _))| (k, i))
                        .min()
                        .map(|(k, i)| (i, k))
                };
                prop_assert_eq!(heap.first(clear, odd), scan(&odd, clear));
                prop_assert_eq!(heap.first(clear, |_| true), scan(&|_| true, clear));
                let all = Clear { expected: u64::MAX, worst: u64::MAX };
                prop_assert_eq!(heap.peek(), scan(&|_| true, all));
                prop_assert_eq!(heap.is_empty(), model.is_empty());
            }
        }
    }
}
