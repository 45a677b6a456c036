//! One Python exception for each error of the core. The classes live in `deepconf.errors`.

use deepconf_core::Error;
use pyo3::prelude::*;
use pyo3::types::PyType;

/// The exception class that stands for `error`.
fn class(error: &Error) -> &'static str {
    match error {
        Error::Event { .. } => "EventError",
        Error::UnknownPreset { .. } => "UnknownPreset",
        _ => "InvalidInput",
    }
}

/// An error of the core as a Python exception.
pub fn raise(error: Error) -> PyErr {
    exception(class(&error), error.to_string())
}

/// `InvalidInput` with this message.
pub fn invalid_input(message: impl Into<String>) -> PyErr {
    exception("InvalidInput", message.into())
}

/// `InvalidType` with this message.
pub fn invalid_type(message: impl Into<String>) -> PyErr {
    exception("InvalidType", message.into())
}

fn exception(class: &str, message: String) -> PyErr {
    Python::attach(|py| {
        let found = py
            .import("deepconf.errors")
            .and_then(|errors| errors.getattr(class))
            .and_then(|class| Ok(class.cast_into::<PyType>()?));
        match found {
            Ok(class) => PyErr::from_type(class, message),
            Err(error) => error,
        }
    })
}
