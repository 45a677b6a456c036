//! Work on many things at once: on the threads of rayon's current pool, or one after another [`alone`] and
//! where the feature `rayon` is off. Results are in order, whatever the number of threads, and so is the
//! error.

use std::cell::Cell;

use crate::error::Result;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on the calling thread alone: what else goes in parallel goes one after another, and no
/// thread is started, woken or waited for. For small work, which takes less than to wake one.
///
/// ```
/// use deepconf_core::alone;
/// use deepconf_core::token::Table;
///
/// let table = Table::new(&[-0.5_f32, -3.5], 2)?;
/// assert_eq!(alone(|| table.confidence(None))?, [2.0]);
/// # Ok::<(), deepconf_core::Error>(())
/// ```
pub fn alone<T>(work: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _before = Before(ALONE.replace(true));
    work()
}

/// `f(0)`, `f(1)`, … up to `f(count − 1)`.
pub(crate) fn map<T: Send>(count: usize, f: impl Fn(usize) -> T + Send + Sync) -> Vec<T> {
    map_with(count, 1, || (), |(), at| f(at))
}

/// As [`map`], or the error of the first that fails.
pub(crate) fn try_map<T: Send>(
    count: usize,
    f: impl Fn(usize) -> Result<T> + Send + Sync,
) -> Result<Vec<T>> {
    #[cfg(feature = "rayon")]
    if !ALONE.get() {
        use rayon::prelude::*;
        let all: Result<Vec<T>> = (0..count).into_par_iter().map(&f).collect();
        // Threads meet any error first.
        return all.map_err(|any| (0..count).find_map(|at| f(at).err()).unwrap_or(any));
    }
    (0..count).map(f).collect()
}

/// As [`map`], each thread with scratch of its own, and with no fewer than `least` at a time.
#[cfg_attr(not(feature = "rayon"), allow(unused_variables))]
pub(crate) fn map_with<S, T: Send>(
    count: usize,
    least: usize,
    scratch: impl Fn() -> S + Send + Sync,
    f: impl Fn(&mut S, usize) -> T + Send + Sync,
) -> Vec<T> {
    #[cfg(feature = "rayon")]
    if !ALONE.get() {
        use rayon::prelude::*;
        return (0..count).into_par_iter().with_min_len(least).map_init(scratch, f).collect();
    }
    let mut scratch = scratch();
    (0..count).map(|at| f(&mut scratch, at)).collect()
}

/// Fills `values` by `f(at, chunk)`, every chunk but the last of `size`; whether all of them said true.
pub(crate) fn fill<T: Send>(
    values: &mut [T],
    size: usize,
    f: impl Fn(usize, &mut [T]) -> bool + Send + Sync,
) -> bool {
    #[cfg(feature = "rayon")]
    if !ALONE.get() {
        use rayon::prelude::*;
        let chunks = values.par_chunks_mut(size).enumerate();
        return chunks.map(|(at, chunk)| f(at, chunk)).reduce(|| true, |a, b| a & b);
    }
    let chunks = values.chunks_mut(size).enumerate();
    chunks.fold(true, |sound, (at, chunk)| sound & f(at, chunk))
}

/// How many threads there are.
pub(crate) fn threads() -> usize {
    #[cfg(feature = "rayon")]
    if !ALONE.get() {
        return rayon::current_num_threads();
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_chunks_are_filled_and_any_of_them_may_be_unsound() {
        for unsound in [None, Some(0), Some(1), Some(3)] {
            let filled = || {
                let mut values = [0; 10];
                let sound = fill(&mut values, 3, |at, chunk| {
                    chunk.fill(at + 1);
                    unsound != Some(at)
                });
                (values, sound)
            };
            let expected = ([1, 1, 1, 2, 2, 2, 3, 3, 3, 4], unsound.is_none());
            assert_eq!((filled(), alone(filled)), (expected, expected));
        }
    }
}
