//! A buddy allocator over the granules of one slab. Pure bookkeeping: numbers in, numbers out.
//!
//! Always holds: a granule is in exactly one free run or in none, and no two free buddies of one order
//! exist side by side unless they are of the largest order.

use rohrpost_engine_core::platform::{CHUNK_LEN_MAX, CHUNK_LEN_MIN, SLAB_LEN};

/// Length of a granule, bytes.
pub(super) const GRANULE_LEN: usize = CHUNK_LEN_MIN.as_usize();

/// Granules of a slab.
pub(super) const GRANULES: usize = SLAB_LEN.as_usize() / GRANULE_LEN;

/// Run lengths: granules times two to the power of 0, 1, .. `ORDERS` - 1.
pub(super) const ORDERS: usize = (CHUNK_LEN_MAX.as_usize() / GRANULE_LEN).ilog2() as usize + 1;

/// The longest run's.
pub(super) const ORDER_MAX: usize = ORDERS - 1;
const WORDS: usize = GRANULES / 64;

const _: () = assert!(CHUNK_LEN_MIN.get().is_power_of_two());
const _: () = assert!(CHUNK_LEN_MAX.get().is_power_of_two());
const _: () = assert!(GRANULES.is_multiple_of(64));

/// Which runs of a slab are free.
pub(super) struct Buddy {
    /// By order, one bit per possible run; bit `i` is the run that starts at granule `i << order`.
    free: [[u64; WORDS]; ORDERS],
    /// Set bits of `free`, by order.
    count: [u32; ORDERS],
}

impl Buddy {
    /// All granules free.
    pub(super) fn new() -> Self {
        let mut buddy = Self { free: [[0; WORDS]; ORDERS], count: [0; ORDERS] };
        for run in 0..GRANULES >> ORDER_MAX {
            buddy.insert(ORDER_MAX, run);
        }
        buddy
    }

    /// The order of runs of `len` bytes.
    ///
    /// # Panics
    /// If `len` is no power of two within the chunk limits.
    pub(super) fn order_of(len: usize) -> usize {
        assert!(len.is_power_of_two(), "chunk length {len} is no power of two");
        assert!(len >= GRANULE_LEN, "chunk length {len} is below {GRANULE_LEN}");
        assert!(len <= GRANULE_LEN << ORDER_MAX, "chunk length {len} is above {}", GRANULE_LEN << ORDER_MAX);
        (len / GRANULE_LEN).ilog2() as usize
    }

    /// Takes the lowest free run of the smallest order that fits; returns its first granule.
    pub(super) fn take(&mut self, order: usize) -> Option<usize> {
        let from = (order..ORDERS).find(|&larger| self.count[larger] > 0)?;
        let mut run = self.first_free(from)?;
        self.remove(from, run);
        for split in (order..from).rev() {
            run *= 2;
            self.insert(split, run + 1);
        }
        Some(run << order)
    }

    /// Gives a run back and merges it with its free buddies.
    ///
    /// # Panics
    /// If the run, or its buddy as a whole, is free already.
    pub(super) fn give(&mut self, granule: usize, order: usize) {
        let mut run = granule >> order;
        assert_eq!(run << order, granule, "granule {granule} starts no run of order {order}");
        for smaller in order..ORDER_MAX {
            if !self.contains(smaller, run ^ 1) {
                return self.insert(smaller, run);
            }
            self.remove(smaller, run ^ 1);
            run /= 2;
        }
        self.insert(ORDER_MAX, run);
    }

    /// Takes every free run within `count` granules from `first` on, both multiples of the longest run;
    /// one bit per granule taken.
    pub(super) fn withdraw(&mut self, first: usize, count: usize) -> u32 {
        debug_assert!(first.is_multiple_of(1 << ORDER_MAX) && count.is_multiple_of(1 << ORDER_MAX));
        let mut taken = 0;
        for order in 0..ORDERS {
            for run in first >> order..(first + count) >> order {
                if self.contains(order, run) {
                    self.remove(order, run);
                    taken |= granule_bits((run << order) - first, order);
                }
            }
        }
        taken
    }

    fn first_free(&self, order: usize) -> Option<usize> {
        let words = &self.free[order];
        let word = words.iter().position(|&word| word != 0)?;
        Some(word * 64 + words[word].trailing_zeros() as usize)
    }

    fn contains(&self, order: usize, run: usize) -> bool {
        self.free[order][run / 64] & (1 << (run % 64)) != 0
    }

    fn insert(&mut self, order: usize, run: usize) {
        assert!(!self.contains(order, run), "run {run} of order {order} is free already");
        self.free[order][run / 64] |= 1 << (run % 64);
        self.count[order] += 1;
    }

    fn remove(&mut self, order: usize, run: usize) {
        assert!(self.contains(order, run), "run {run} of order {order} is not free");
        self.free[order][run / 64] &= !(1 << (run % 64));
        self.count[order] -= 1;
    }
}

/// A run of `order` from granule `at` on, one bit per granule.
pub(super) fn granule_bits(at: usize, order: usize) -> u32 {
    (((1u64 << (1 << order)) - 1) << at) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every granule is handed out exactly once, and everything merges again.
    #[test]
    fn takes_all_and_merges_all() {
        let mut buddy = Buddy::new();
        let mut taken: Vec<usize> = std::iter::from_fn(|| buddy.take(0)).collect();
        taken.sort_unstable();
        assert_eq!(taken, (0..GRANULES).collect::<Vec<_>>());
        for granule in taken.into_iter().rev() {
            buddy.give(granule, 0);
        }
        assert_eq!(buddy.count, Buddy::new().count);
        assert_eq!(std::iter::from_fn(|| buddy.take(ORDER_MAX)).count(), GRANULES >> ORDER_MAX);
    }

    /// Random takes and gives against a plain ownership map.
    #[test]
    fn agrees_with_a_model() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut buddy = Buddy::new();
        let mut owned = [false; GRANULES];
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for _ in 0..20_000 {
            if random.bool() {
                let order = random.usize(..ORDERS);
                let Some(granule) = buddy.take(order) else {
                    let free = |at: usize| owned[at..at + (1 << order)].iter().all(|&taken| !taken);
                    assert!(!(0..GRANULES).step_by(1 << order).any(free), "a free run was missed");
                    continue;
                };
                assert_eq!(granule % (1 << order), 0);
                for taken in &mut owned[granule..granule + (1 << order)] {
                    assert!(!*taken);
                    *taken = true;
                }
                runs.push((granule, order));
            } else if !runs.is_empty() {
                let (granule, order) = runs.swap_remove(random.usize(..runs.len()));
                owned[granule..granule + (1 << order)].fill(false);
                buddy.give(granule, order);
            }
        }
        for (granule, order) in runs {
            buddy.give(granule, order);
        }
        assert_eq!(buddy.count, Buddy::new().count);
    }

    #[test]
    #[should_panic(expected = "is free already")]
    fn a_run_is_given_back_once() {
        let mut buddy = Buddy::new();
        let granule = buddy.take(ORDER_MAX).unwrap();
        buddy.give(granule, ORDER_MAX);
        buddy.give(granule, ORDER_MAX);
    }

    #[test]
    #[should_panic(expected = "no power of two")]
    fn odd_lengths_are_refused() {
        Buddy::order_of(3 * GRANULE_LEN);
    }
}
