//! Columns of numbers that stand for Python objects.

use std::ops::Range;

use deepconf_core::vote::{Key, Keys};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::convert::kind;
use crate::error::invalid_type;

/// Hashable values, numbered.
pub struct Objects<'py> {
    /// A number for each row, equal for equal values; `None` where there is no value.
    numbers: Vec<Option<u32>>,
    /// The first value that got each number.
    distinct: Vec<Bound<'py, PyAny>>,
    /// The number of each value.
    seen: Bound<'py, PyDict>,
}

impl<'py> Objects<'py> {
    pub fn new(py: Python<'py>) -> Self {
        Self { numbers: Vec::new(), distinct: Vec::new(), seen: PyDict::new(py) }
    }

    pub fn push(&mut self, item: Option<Bound<'py, PyAny>>, name: &str) -> PyResult<()> {
        let Some(item) = item else {
            self.numbers.push(None);
            return Ok(());
        };
        let known = self.seen.get_item(&item).map_err(|_| {
            let (position, kind) = (self.numbers.len(), kind(&item));
            invalid_type(format!("{name}[{position}] is a {kind}: must be hashable"))
        })?;
        let number = match known {
            Some(number) => number.extract()?,
            None => {
                let number = self.distinct.len() as u32;
                self.seen.set_item(&item, number)?;
                self.distinct.push(item);
                number
            }
        };
        self.numbers.push(Some(number));
        Ok(())
    }

    /// What the core reads.
    pub fn keys(&self) -> impl Keys + Sync {
        Numbered(&self.numbers)
    }

    /// The value of a row; `None` where there is none.
    pub fn value(&self, row: usize) -> Option<&Bound<'py, PyAny>> {
        self.numbers[row].map(|number| &self.distinct[number as usize])
    }

    /// The first row without a value.
    pub fn first_missing(&self) -> Option<usize> {
        self.numbers.iter().position(Option::is_none)
    }
}

struct Numbered<'a>(&'a [Option<u32>]);

impl Numbered<'_> {
    fn key(number: Option<u32>) -> Key {
        number.map_or(Key::MISSING, |number| Key::integer(number.into()))
    }
}

impl Keys for Numbered<'_> {
    fn rows(&self) -> usize {
        self.0.len()
    }

    fn keys(&self, rows: Range<usize>, out: &mut Vec<Key>) {
        out.extend(self.0[rows].iter().map(|number| Self::key(*number)));
    }

    fn pick(&self, rows: &[u32], out: &mut Vec<Key>) {
        out.extend(rows.iter().map(|&row| Self::key(self.0[row as usize])));
    }

    fn present(&self, rows: Range<usize>, out: &mut Vec<bool>) {
        out.extend(self.0[rows].iter().map(Option::is_some));
    }

    fn same(&self, _: usize, _: usize) -> bool {
        true
    }
}
