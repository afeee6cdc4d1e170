//! Stage 4, schedule: work that runs in what reserved work leaves free, in its order, and the first of it that
//! fits.
//!
//! A heap by key, in which every place also knows the least that anything below it needs: what cannot fit is
//! passed by without being looked at, however many tenants wait with jobs that are too long.

use alloc::{vec, vec::Vec};

const ABSENT: u32 = u32::MAX;
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
    /// Key and index in heap order.
    order: Vec<(K, u32)>,
    /// The least need at and below each place of `order`.
    least: Vec<Clear>,
    /// Where each index is in `order`, or [`ABSENT`].
    place: Vec<u32>,
    /// By index.
    needs: Vec<Clear>,
}

impl<K: Ord + Copy> SlackHeap<K> {
    pub(crate) fn new(n: usize) -> Self {
        Self {
            order: Vec::with_capacity(n),
            least: Vec::with_capacity(n),
            place: vec![ABSENT; n],
            needs: vec![Clear::NONE; n],
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The smallest key with its index.
    pub(crate) fn peek(&self) -> Option<(usize, K)> {
        self.order.first().map(|&(k, i)| (i as usize, k))
    }

    /// Puts `index` in, or changes its key and need. An index beyond the heap's size is ignored.
    pub(crate) fn set(&mut self, index: usize, key: K, need: Clear) {
        let Some(&at) = self.place.get(index) else {
            return;
        };
        self.needs[index] = need;
        let at = if at == ABSENT {
            self.order.push((key, index as u32));
            self.least.push(need);
            self.order.len() - 1
        } else {
            self.order[at as usize].0 = key;
            at as usize
        };
        self.settle(at);
    }

    /// Takes `index` out, if it is in.
    pub(crate) fn remove(&mut self, index: usize) {
        let Some(&at) = self.place.get(index) else {
            return;
        };
        if at == ABSENT {
            return;
        }
        let at = at as usize;
        self.place[index] = ABSENT;
        self.order.swap_remove(at);
        self.least.pop();
        let end = self.order.len();
        if end > 0 {
            self.renew((end - 1) / 2);
        }
        if at < end {
            self.settle(at);
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
            let (Some(&entry), Some(least)) = (self.order.get(at), self.least.get(at)) else {
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

    /// Moves the entry at `at` to where it belongs, and renews what is known above it.
    fn settle(&mut self, mut at: usize) {
        let from = at;
        let entry = self.order[at];
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.order[parent] <= entry {
                break;
            }
            self.put(at, self.order[parent]);
            at = parent;
        }
        loop {
            let mut child = 2 * at + 1;
            if child >= self.order.len() {
                break;
            }
            if child + 1 < self.order.len() && self.order[child + 1] < self.order[child] {
                child += 1;
            }
            if entry <= self.order[child] {
                break;
            }
            self.put(at, self.order[child]);
            at = child;
        }
        self.put(at, entry);
        // One of the two is above the other, and nothing else has moved.
        self.renew(from.max(at));
    }

    fn put(&mut self, at: usize, entry: (K, u32)) {
        self.order[at] = entry;
        self.place[entry.1 as usize] = at as u32;
    }

    /// Works out the least need again, at `at` and above.
    fn renew(&mut self, mut at: usize) {
        loop {
            let mut least = self.needs[self.order[at].1 as usize];
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
