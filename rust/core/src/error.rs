//! What can be wrong with an input, told so that the caller can mend it.

use crate::controller::Status;

/// The result of everything here that checks its input.
pub type Result<T> = std::result::Result<T, Error>;

/// One variant for each thing that can be wrong.
///
/// Every message names the argument, the offending value, where it stands and what would be
/// right.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A NaN or an infinity among confidences or log-probabilities.
    #[error("{argument} holds {value} at {place}: every value must be finite{hint}")]
    NotFinite {
        /// The argument's name.
        argument: &'static str,
        /// Where the value stands.
        place: Place,
        /// The value.
        value: f64,
        /// What would help, or nothing.
        hint: &'static str,
    },

    /// A confidence too large for the fixed-point sums ([`crate::fixed`]).
    #[error(
        "{argument} holds {value} at {place}: confidences are in nats and must stay within \
         ±{limit}; rescale the signal, or clip it"
    )]
    OutOfRange {
        /// The argument's name.
        argument: &'static str,
        /// Where the value stands.
        place: Place,
        /// The value.
        value: f64,
        /// The largest magnitude accepted.
        limit: f64,
    },

    /// A setting outside its range, or settings that contradict each other.
    #[error("{name}={value}: {expected}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: String,
    },

    /// An argument, not a setting, that cannot be.
    #[error("{name}={value}: {expected}")]
    Argument {
        /// The argument's name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: String,
    },

    /// Two arguments that must be of one length are not.
    #[error("{left} has {left_len} entries and {right} has {right_len}: they must be as many")]
    Length {
        /// The first argument's name.
        left: &'static str,
        /// Its length.
        left_len: usize,
        /// The second argument's name.
        right: &'static str,
        /// Its length.
        right_len: usize,
    },

    /// Offsets that do not cut the values into traces.
    #[error("offsets[{position}] = {value}: {expected}")]
    Offsets {
        /// The position of the offending offset.
        position: usize,
        /// Its value.
        value: i64,
        /// What would be right.
        expected: String,
    },

    /// A weight that is negative, not finite, or so large that sums are not.
    #[error(
        "weights[{position}] = {value}: a weight must be finite and at least 0, and at most 1e290 (a \
         trace without tokens has no score: give it no answer)"
    )]
    Weight {
        /// The position of the offending weight.
        position: usize,
        /// Its value.
        value: f64,
    },

    /// A preset nobody knows.
    #[error("preset={name:?}: the presets are {known}")]
    UnknownPreset {
        /// The name that was asked for.
        name: String,
        /// The names there are.
        known: String,
    },

    /// An event that does not fit a trace's state.
    #[error(
        "{event} of trace {trace}, which is {}: {expected}",
        status.map_or("unknown", Status::name)
    )]
    Event {
        /// The event.
        event: &'static str,
        /// The trace it names.
        trace: u32,
        /// Where that trace stands; `None` for one that was never launched.
        status: Option<Status>,
        /// What would be right.
        expected: &'static str,
    },
}

/// Where a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A position in a one-dimensional argument.
    Position(usize),
    /// A token of a trace.
    Token {
        /// The trace's index.
        trace: usize,
        /// The token's index within the trace.
        position: usize,
    },
    /// An entry of a table.
    Cell {
        /// The row's index.
        row: usize,
        /// The column's index.
        column: usize,
    },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Position(position) => write!(f, "position {position}"),
            Self::Token { trace, position } => write!(f, "trace {trace}, position {position}"),
            Self::Cell { row, column } => write!(f, "row {row}, column {column}"),
        }
    }
}

impl Error {
    /// The same error, its position counted from the start of a trace of which `seen` tokens came
    /// before.
    pub(crate) fn in_trace(mut self, trace: u32, seen: u64) -> Self {
        if let Self::NotFinite { place, .. } | Self::OutOfRange { place, .. } = &mut self
            && let Place::Position(position) = *place
        {
            *place = Place::Token { trace: trace as usize, position: seen as usize + position };
        }
        self
    }

    /// The same, of the trace of that number.
    pub(crate) fn of_trace(mut self, number: usize) -> Self {
        if let Self::NotFinite { place, .. } | Self::OutOfRange { place, .. } = &mut self
            && let Place::Token { trace, .. } = place
        {
            *trace = number;
        }
        self
    }

    /// An argument that cannot be.
    pub(crate) fn argument(
        name: &'static str,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Argument { name, value: value.to_string(), expected: expected.into() }
    }

    /// A setting outside its range.
    pub(crate) fn setting(
        name: &'static str,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Setting { name, value: value.to_string(), expected: expected.into() }
    }
}
