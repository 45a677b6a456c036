//! Threads for long work: one pool a process, kept between calls.
//!
//! It has a thread a core, or as many as `RAYON_NUM_THREADS` says. Fewer are made for the call that asks
//! for fewer, and end with it; more would not be faster. Small work is done by the calling thread. rayon's
//! global pool is never used: nothing that goes in parallel is called but through here.
//!
//! A pool does not survive `fork`: the child has the memory but none of the threads, and waiting for
//! them would hang. So a forked child is told that it is one, and makes a pool of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use deepconf_core::{Result, alone};
use pyo3::prelude::*;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::convert::whole;
use crate::error::{invalid_input, raise};
use crate::locked::BRIEF;

/// So many values, or rows of a vote, take less than to wake a thread.
const ALONE: usize = 1 << 16;

/// So many values that lie anywhere are fetched by a thread at a time.
const PIECE: usize = 1 << 13;

/// The most threads that can be asked for.
const MOST: usize = 4_096;

/// A process's pool, and what a fork of it has in its place. Nothing here is ever locked, since a lock
/// that some thread held would stay locked in the child.
#[derive(Default)]
struct Process {
    pool: OnceLock<ThreadPool>,
    child: OnceLock<Box<Process>>,
}

static FIRST: Process = Process { pool: OnceLock::new(), child: OnceLock::new() };

impl Process {
    fn this() -> &'static Self {
        let mut process = &FIRST;
        while let Some(child) = process.child.get() {
            process = child;
        }
        process
    }

    fn pool(&self) -> std::result::Result<&ThreadPool, ThreadPoolBuildError> {
        if let Some(pool) = self.pool.get() {
            return Ok(pool);
        }
        // Two threads may come here at once; one pool is let go then.
        let pool = builder().build()?;
        Ok(self.pool.get_or_init(|| pool))
    }
}

fn builder() -> ThreadPoolBuilder {
    ThreadPoolBuilder::new().thread_name(|i| format!("deepconf-{i}"))
}

/// Python calls this in a forked child, before anything else runs there.
#[pyfunction]
fn forked() {
    // What the parent's pool holds stays: it has no threads here, and joining them would wait for ever.
    let _ = Process::this().child.set(Box::default());
}

/// Has Python tell of forks.
pub fn watch_forks(py: Python<'_>) -> PyResult<()> {
    let os = py.import("os")?;
    // Where there is no such function there is no fork.
    let Some(register) = os.getattr_opt("register_at_fork")? else { return Ok(()) };
    let arguments = pyo3::types::PyDict::new(py);
    arguments.set_item("after_in_child", wrap_pyfunction!(forked, py)?)?;
    register.call((), Some(&arguments)).map(drop)
}

/// How many threads a call may use; `None` for all there are.
#[derive(Clone, Copy)]
pub struct Threads(Option<usize>);

impl Threads {
    pub const ALL: Self = Self(None);

    /// Reads the argument `threads`.
    pub fn read(threads: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let Some(value) = threads else { return Ok(Self::ALL) };
        let threads = whole(value, "threads")?;
        if (1..=MOST).contains(&threads) {
            return Ok(Self(Some(threads)));
        }
        Err(invalid_input(format!(
            "threads={threads}: must be between 1 and {MOST}, or None for all cores"
        )))
    }

    /// Runs work on so many values: on the calling thread alone if they are few, and without the
    /// interpreter unless they are very few.
    pub fn run<T: Send>(
        self,
        py: Python<'_>,
        values: usize,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> PyResult<T> {
        match values {
            ..=BRIEF => alone(|| sound(work)),
            _ if values <= ALONE || self.0 == Some(1) => py.detach(|| alone(|| sound(work))),
            _ => py.detach(|| self.spread(work)),
        }
    }

    /// What `work` makes of these values, piece by piece: on the calling thread if they are but one.
    pub fn pieces<T: Sync, U: Send>(
        self,
        py: Python<'_>,
        values: &[T],
        work: impl Fn(&[T]) -> U + Send + Sync,
    ) -> PyResult<Vec<U>> {
        if values.len() <= PIECE || self.0 == Some(1) {
            return Ok(vec![work(values)]);
        }
        py.detach(|| self.spread(|| Ok(values.par_chunks(PIECE).map(&work).collect())))
    }

    /// Runs work on the pool; without Python, so that it may be called under a lock. A lock must never be
    /// asked for within: a thread of the pool that waits takes up other work.
    pub fn spread<T: Send>(self, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
        let short = |error| invalid_input(format!("threads cannot be started: {error}"));
        let pool = Process::this().pool().map_err(short)?;
        match self.0 {
            Some(fewer) if fewer < pool.current_num_threads() => builder()
                .num_threads(fewer)
                .build_scoped(|thread| thread.run(), |pool| pool.install(|| sound(work)))
                .map_err(short)?,
            _ => pool.install(|| sound(work)),
        }
    }
}

/// Arrays are read where they are, and may be written to meanwhile: numbers that change between two
/// looks can lead nowhere.
fn sound<T>(work: impl FnOnce() -> Result<T>) -> PyResult<T> {
    let done = catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        invalid_input(
            "an array was written to while it was read (pass a copy, or wait for the writer); if \
             none was, this is a bug of deepconf",
        )
    })?;
    done.map_err(raise)
}
