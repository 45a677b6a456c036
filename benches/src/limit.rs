//! What a kernel that is bound by memory cannot beat.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// More memory than any cache holds, to be read from another place each time.
pub struct Memory<T> {
    values: Vec<T>,
    at: AtomicUsize,
}

impl<T: Copy> Memory<T> {
    /// All of `values`, from the first on.
    #[must_use]
    pub fn new(values: Vec<T>) -> Self {
        Self { values, at: AtomicUsize::new(0) }
    }

    /// `values` as often as they go into so many bytes, and once at least: to be read whole, and to be the
    /// same each time.
    #[must_use]
    pub fn repeated(values: &[T], bytes: usize) -> Self {
        Self::new(values.repeat((bytes / size_of_val(values)).max(1)))
    }

    /// How many bytes there are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.values.as_slice())
    }

    /// The next `n` values, which the longest time has passed for since they were read.
    #[must_use]
    pub fn next(&self, n: usize) -> &[T] {
        assert!(n <= self.values.len(), "{n} values of {}", self.values.len());
        let at = self.at.load(Ordering::Relaxed);
        let from = if at + n <= self.values.len() { at } else { 0 };
        self.at.store(from + n, Ordering::Relaxed);
        &self.values[from..from + n]
    }
}

/// Reads float32 and adds it up, in more lanes than the adders need.
#[must_use]
pub fn read(values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<64>();
    let mut lanes = [0.0_f32; 64];
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// [`read`] on every thread of the current pool.
#[must_use]
pub fn read_in_parallel(values: &[f32]) -> f32 {
    values.par_chunks(1 << 18).map(read).sum()
}

/// Copies `values`.
pub fn copy(values: &[f32], to: &mut [f32]) {
    to.copy_from_slice(values);
}
