//! Values that came out of a column.

use arrow_array::{Int64Array, LargeStringArray};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyList;

/// Values that become a list when somebody asks for one: to make an object of each can take longer than
/// to find out which they are.
pub struct Values {
    held: Held,
    list: PyOnceLock<Py<PyList>>,
}

/// What becomes a list; a null is None.
pub enum Held {
    /// A list already.
    List(Py<PyList>),
    /// Strings, piece by piece.
    Texts(Vec<LargeStringArray>),
    /// Integers; the flag says that they are unsigned.
    Integers(Int64Array, bool),
}

impl From<Held> for Values {
    fn from(held: Held) -> Self {
        Self { held, list: PyOnceLock::new() }
    }
}

impl From<Py<PyList>> for Values {
    fn from(list: Py<PyList>) -> Self {
        Held::List(list).into()
    }
}

impl Values {
    /// The list, the same each time.
    pub fn list<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let make = || -> PyResult<Py<PyList>> {
            let list = match &self.held {
                Held::List(list) => return Ok(list.clone_ref(py)),
                Held::Texts(pieces) => PyList::new(py, pieces.iter().flatten().collect::<Vec<_>>()),
                Held::Integers(values, false) => PyList::new(py, values.iter()),
                Held::Integers(values, true) => {
                    PyList::new(py, values.iter().map(|value| value.map(|value| value as u64)))
                }
            };
            Ok(list?.unbind())
        };
        Ok(self.list.get_or_try_init(py, make)?.bind(py).clone())
    }
}
