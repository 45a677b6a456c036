//! What Python hands over, as what the core reads; errors say which argument is wrong, and how.
//!
//! Arrays are read where they are if they are contiguous and aligned, and copied once otherwise. They
//! are not locked meanwhile: whoever writes to one that is being read gets scores of whatever mixture was
//! read, or `InvalidInput`.

mod argument;
mod arrays;
mod column;
mod lists;

pub use argument::{Given, kind, maybe, number, object, optional, text, truth, whole};
pub use arrays::{Floats, array, check_lengths, contiguous, doubles, exactly, integers};
pub use column::{Column, Values};
pub use lists::{Lists, arrow, lists};

pub(crate) use arrays::with_floats;
