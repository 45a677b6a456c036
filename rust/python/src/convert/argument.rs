//! Arguments that are one value, read under their names.
//!
//! A function takes them as they are and reads them here, so that a wrong type is an error of ours that
//! names the argument.

use std::convert::Infallible;

use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::type_object::PyTypeCheck;
use pyo3::types::PyString;

use crate::error::{invalid_input, invalid_type};

/// An argument that can be left out where None is a value of its own, or wrong.
#[derive(Default)]
pub struct Given<'py>(Option<Bound<'py, PyAny>>);

impl<'a, 'py> FromPyObject<'a, 'py> for Given<'py> {
    type Error = Infallible;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> Result<Self, Infallible> {
        Ok(Self(Some(value.to_owned())))
    }
}

impl<'py> Given<'py> {
    /// What `read` makes of it, or the default.
    pub fn or<T>(
        &self,
        default: T,
        name: &str,
        read: impl FnOnce(&Bound<'py, PyAny>, &str) -> PyResult<T>,
    ) -> PyResult<T> {
        self.0.as_ref().map_or(Ok(default), |value| read(value, name))
    }
}

/// A value as a message shows it: its beginning.
pub fn shown(value: &Bound<'_, PyAny>) -> String {
    const MOST: usize = 60;
    let Ok(text) = value.str() else { return "(not printable)".into() };
    let text = text.to_string_lossy();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into_owned(),
    }
}

/// A value's type as a message names it.
pub fn kind(value: &Bound<'_, PyAny>) -> String {
    let kind = value.get_type();
    kind.name().map_or_else(|_| kind.to_string(), |name| name.to_string_lossy().into_owned())
}

fn wrong_type(value: &Bound<'_, PyAny>, name: &str, expected: &str) -> PyErr {
    let what = match value.is_instance_of::<PyString>() {
        true => format!("'{}' is a text", shown(value)),
        false => format!("{} is a {}", shown(value), kind(value)),
    };
    invalid_type(format!("{name}={what}: must be {expected}"))
}

/// A whole number that fits `T`.
pub fn whole<T: TryFrom<i128>>(value: &Bound<'_, PyAny>, name: &str) -> PyResult<T> {
    let number = match value.extract::<i64>() {
        Ok(number) => Some(number.into()),
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
            value.extract::<u64>().ok().map(i128::from)
        }
        Err(_) => return Err(wrong_type(value, name, "a whole number")),
    };
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| invalid_input(format!("{name}={}: out of range, or negative", shown(value))))
}

/// A number.
pub fn number(value: &Bound<'_, PyAny>, name: &str) -> PyResult<f64> {
    value.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyOverflowError>(value.py()) {
            return invalid_input(format!("{name}={}: out of range", shown(value)));
        }
        wrong_type(value, name, "a number")
    })
}

/// True or False.
pub fn truth(value: &Bound<'_, PyAny>, name: &str) -> PyResult<bool> {
    value.extract().map_err(|_| wrong_type(value, name, "True or False"))
}

/// A string.
pub fn text(value: &Bound<'_, PyAny>, name: &str) -> PyResult<String> {
    let text = value.cast::<PyString>().map_err(|_| wrong_type(value, name, "a string"))?;
    let text = text.to_str().map_err(|error| invalid_input(format!("{name}: {error}")))?;
    Ok(text.into())
}

/// An object of one class; `expected` says which, as in "a Policy".
pub fn object<'a, 'py, T: PyTypeCheck>(
    value: &'a Bound<'py, PyAny>,
    name: &str,
    expected: &str,
) -> PyResult<&'a Bound<'py, T>> {
    value.cast().map_err(|_| wrong_type(value, name, expected))
}

/// `Some` of what `read` makes of it, unless it is Python's None.
pub fn optional<'py, T>(
    value: &Bound<'py, PyAny>,
    name: &str,
    read: impl FnOnce(&Bound<'py, PyAny>, &str) -> PyResult<T>,
) -> PyResult<Option<T>> {
    if value.is_none() { Ok(None) } else { read(value, name).map(Some) }
}

/// [`optional`] as a reader.
pub fn maybe<'py, T>(
    read: impl Fn(&Bound<'py, PyAny>, &str) -> PyResult<T>,
) -> impl Fn(&Bound<'py, PyAny>, &str) -> PyResult<Option<T>> {
    move |value, name| optional(value, name, &read)
}
