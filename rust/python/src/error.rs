//! One Python exception for each error of the core. The classes live in `deepconf.errors`.
//!
//! They are looked up when Python first sees the error, not when it is made: an error may be made where
//! Python must not run.

use deepconf_core::Error;
use pyo3::{PyErr, import_exception};

import_exception!(deepconf.errors, EventError);
import_exception!(deepconf.errors, InvalidInput);
import_exception!(deepconf.errors, InvalidType);
import_exception!(deepconf.errors, UnknownPreset);

/// An error of the core as a Python exception.
pub fn raise(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Event { .. } => EventError::new_err(message),
        Error::UnknownPreset { .. } => UnknownPreset::new_err(message),
        _ => InvalidInput::new_err(message),
    }
}

/// `InvalidInput` with this message.
pub fn invalid_input(message: impl Into<String>) -> PyErr {
    InvalidInput::new_err(message.into())
}

/// `InvalidType` with this message.
pub fn invalid_type(message: impl Into<String>) -> PyErr {
    InvalidType::new_err(message.into())
}
