//! Stage 4, schedule: a binary heap of small indices whose keys may change: what the policies order tenants
//! with.
//!
//! Every index is in the heap at most once, so nothing is ever stale and nothing is ever scanned. All
//! storage is taken in [`IndexedHeap::new`].

use alloc::{vec, vec::Vec};

const ABSENT: u32 = u32::MAX;

/// A min-heap over the indices `0..n`, each with one key.
#[derive(Debug)]
pub(crate) struct IndexedHeap<K> {
    /// Key and index in heap order.
    order: Vec<(K, u32)>,
    /// Where each index is in `order`, or [`ABSENT`].
    place: Vec<u32>,
}

impl<K: Ord + Copy> IndexedHeap<K> {
    /// An empty heap for the indices below `n`.
    pub(crate) fn new(n: usize) -> Self {
        Self { order: Vec::with_capacity(n), place: vec![ABSENT; n] }
    }

    /// The smallest key with its index.
    pub(crate) fn peek(&self) -> Option<(usize, K)> {
        self.order.first().map(|&(k, i)| (i as usize, k))
    }

    /// The smallest key that is wanted, with its index. Looks at few more entries than there are unwanted ones.
    pub(crate) fn least(&self, wanted: impl Fn(usize) -> bool) -> Option<(usize, K)> {
        self.least_below(0, &wanted).map(|(k, i)| (i as usize, k))
    }

    fn least_below(&self, at: usize, wanted: &impl Fn(usize) -> bool) -> Option<(K, u32)> {
        let &entry = self.order.get(at)?;
        if wanted(entry.1 as usize) {
            return Some(entry);
        }
        let left = self.least_below(2 * at + 1, wanted);
        let right = self.least_below(2 * at + 2, wanted);
        match (left, right) {
            (Some(l), Some(r)) => Some(l.min(r)),
            (l, r) => l.or(r),
        }
    }

    /// How many are in it.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The key of `index`, if it is in the heap.
    #[cfg(test)]
    pub(crate) fn key(&self, index: usize) -> Option<K> {
        match self.place.get(index) {
            Some(&p) if p != ABSENT => Some(self.order[p as usize].0),
            _ => None,
        }
    }

    /// Key and index at a place.
    pub(crate) fn entry(&self, place: usize) -> Option<(K, u32)> {
        self.order.get(place).copied()
    }

    /// Puts `index` in with `key`, or changes its key. An index beyond the heap's size is ignored. Answers the lowest
    /// place whose index has changed: all others that have are above it.
    pub(crate) fn set(&mut self, index: usize, key: K) -> Option<usize> {
        let &at = self.place.get(index)?;
        let at = if at == ABSENT {
            self.order.push((key, index as u32));
            self.order.len() - 1
        } else {
            self.order[at as usize].0 = key;
            at as usize
        };
        Some(self.settle(at))
    }

    /// Takes `index` out, if it is in. Answers as [`IndexedHeap::set`] does; beside that, the last place is gone.
    pub(crate) fn remove(&mut self, index: usize) -> Option<usize> {
        let &at = self.place.get(index).filter(|&&at| at != ABSENT)?;
        let at = at as usize;
        self.place[index] = ABSENT;
        self.order.swap_remove(at);
        (at < self.order.len()).then(|| self.settle(at))
    }

    /// Moves the entry at `at` to where it belongs; answers the lower one of the two places.
    fn settle(&mut self, at: usize) -> usize {
        let up = self.up(at);
        at.max(self.down(up))
    }

    /// Moves the entry at `at` towards the root; answers where it ended.
    fn up(&mut self, mut at: usize) -> usize {
        let entry = self.order[at];
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.order[parent] <= entry {
                break;
            }
            self.put(at, self.order[parent]);
            at = parent;
        }
        self.put(at, entry);
        at
    }

    fn down(&mut self, mut at: usize) -> usize {
        let entry = self.order[at];
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
        at
    }

    fn put(&mut self, at: usize, entry: (K, u32)) {
        self.order[at] = entry;
        self.place[entry.1 as usize] = at as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_sorted_map(ops in prop::collection::vec((0usize..24, prop::option::of(0u32..50)), 0..300)) {
            let mut heap = IndexedHeap::new(20);
            let mut model = alloc::collections::BTreeMap::new();
            for (i, op) in ops {
                if let Some(k) = op {
                    heap.set(i, k);
                    if i < 20 {
                        model.insert(i, k);
                    }
                } else {
                    heap.remove(i);
                    model.remove(&i);
                }
                let least = model.iter().map(|(&i, &k)| (k, i)).min().map(|(k, i)| (i, k));
                prop_assert_eq!(heap.peek(), least);
                let odd = model.iter().filter(|(i, _)| *i % 2 == 1);
                let least = odd.map(|(&i, &k)| (k, i)).min().map(|(k, i)| (i, k));
                prop_assert_eq!(heap.least(|i| i % 2 == 1), least);
                prop_assert_eq!(heap.is_empty(), model.is_empty());
                for i in 0..24 {
                    prop_assert_eq!(heap.key(i), model.get(&i).copied());
                }
            }
        }
    }
}
