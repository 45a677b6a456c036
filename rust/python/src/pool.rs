//! Threads for long work, kept between calls.
//!
//! A pool does not survive `fork`: the child has the memory but none of the threads, and waiting for
//! them would hang. So pools are remembered together with the process that made them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use rayon::ThreadPool;

use crate::error::invalid_input;

/// Pools by process and number of threads, 0 for the default.
type Pools = HashMap<(u32, usize), Arc<ThreadPool>>;

static POOLS: Mutex<Option<Pools>> = Mutex::new(None);

/// Runs `work` without the interpreter lock on `threads` threads, on as many as there are cores when
/// `None` (or as `RAYON_NUM_THREADS` says).
pub fn run<T: Send>(
    py: Python<'_>,
    threads: Option<usize>,
    work: impl FnOnce() -> T + Send,
) -> PyResult<T> {
    let pool = pool(threads)?;
    Ok(py.detach(|| pool.install(work)))
}

fn pool(threads: Option<usize>) -> PyResult<Arc<ThreadPool>> {
    if threads == Some(0) {
        return Err(invalid_input("threads=0: must be at least 1, or None for all cores"));
    }
    let key = (std::process::id(), threads.unwrap_or(0));
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    let pools = pools.get_or_insert_default();
    if let Some(pool) = pools.get(&key) {
        return Ok(pool.clone());
    }
    // A parent's pools have no threads here, and joining them on drop would wait for ever.
    let inherited = pools.extract_if(|(process, _), _| *process != key.0);
    inherited.for_each(std::mem::forget);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(key.1)
        .thread_name(|i| format!("deepconf-{i}"))
        .build()
        .map_err(|error| invalid_input(format!("threads={}: {error}", key.1)))?;
    let pool = Arc::new(pool);
    pools.insert(key, pool.clone());
    Ok(pool)
}
