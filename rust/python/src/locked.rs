//! The one way to an object that threads share.
//!
//! Python may run anything at any time: a finalizer, an import hook, another thread. Were it to run
//! while a lock is held, it could ask for the same lock, and wait for itself. So what is done under
//! the lock is pure Rust: neither `Python` nor anything bound to it is `Send`, so no such work can hold
//! one. Results and errors become Python's once the lock is free. Nobody waits for a lock attached to the
//! interpreter, which would keep all other threads waiting too.
//!
//! **Cost.** Some nanoseconds where nobody else has the lock.

use std::sync::{Mutex, PoisonError, TryLockError};

use pyo3::Python;

/// So many values are worked on in some microseconds, for which it does not pay to let the interpreter
/// go.
pub const BRIEF: usize = 4_096;

/// Something that one thread at a time may use.
pub struct Locked<T>(Mutex<T>);

impl<T: Send> Locked<T> {
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Brief work, of some microseconds at the most.
    pub fn with<R: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut T) -> R + Send) -> R {
        match self.0.try_lock() {
            Ok(mut value) => work(&mut value),
            Err(TryLockError::Poisoned(value)) => work(&mut value.into_inner()),
            Err(TryLockError::WouldBlock) => self.with_long(py, work),
        }
    }

    /// Work that may be long, without the interpreter.
    pub fn with_long<R: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut T) -> R + Send) -> R {
        py.detach(|| work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Work on so many values: long unless they are few.
    pub fn with_values<R: Send>(
        &self,
        py: Python<'_>,
        values: usize,
        work: impl FnOnce(&mut T) -> R + Send,
    ) -> R {
        if values > BRIEF { self.with_long(py, work) } else { self.with(py, work) }
    }
}
