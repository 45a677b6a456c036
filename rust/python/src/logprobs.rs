//! Log-probabilities as vLLM and OpenAI-style servers return them, straight to token confidences.

use deepconf_core::token::{ONE_IS_TOO_FEW, check_floor, check_k, confidence};
use numpy::{IntoPyArray, PyArray1, PyUntypedArrayMethods};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use crate::convert::{self, Floats, Given, integers, kind, number, object, optional, truth, whole};
use crate::error::{invalid_input, invalid_type, raise};

/// Which entries of a row count, as the arguments say.
struct Rules {
    /// The k most likely; `None` for as many as there are.
    k: Option<usize>,
    /// All that came back.
    returned: bool,
    floor: Option<f64>,
}

impl Rules {
    fn read(
        k: Option<&Bound<'_, PyAny>>,
        returned: &Given<'_>,
        floor: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let k = k.map(|k| whole(k, "k")).transpose()?;
        let returned = returned.or(false, "returned", truth)?;
        let floor = floor.map(|floor| number(floor, "floor")).transpose()?;
        check_floor(floor).and(k.map_or(Ok(()), |k| check_k("k", k))).map_err(raise)?;
        Ok(Self { k, returned, floor })
    }
}

/// That there is one log-probability a token, as a row shows.
fn one_is_too_few(position: usize, entries: usize) -> PyErr {
    let entries = if entries == 1 { "1 entry".into() } else { format!("{entries} entries") };
    invalid_input(format!(
        "logprobs at position {position} has {entries}, so k=1: {ONE_IS_TOO_FEW}"
    ))
}

fn checked(py: Python<'_>, confidences: Vec<f32>) -> PyResult<Bound<'_, PyArray1<f32>>> {
    if let Some(row) = confidences.iter().position(|c| !c.is_finite()) {
        return Err(invalid_input(format!(
            "logprobs at position {row} are not finite (their mean is {}): where a server reports \
             masked tokens as -inf, set logprob_floor",
            -confidences[row]
        )));
    }
    Ok(confidences.into_pyarray(py))
}

/// What servers write for tokens that a mask has ruled out; nothing sampled is that unlikely.
const MASKED: f64 = -9999.0;
/// Log-probabilities in float32 or less may come out a rounding above 0.
const ROUNDING: f64 = 1e-3;

/// The confidence of a token whose entries stand most likely first.
///
/// Numbers that are no log-probabilities are refused; those that are not finite show in what comes out.
fn confidence_of(counted: &[f64], floor: Option<f64>, position: usize) -> PyResult<f32> {
    let (Some(&first), Some(&last)) = (counted.first(), counted.last()) else {
        return Ok(f32::NAN);
    };
    if first > ROUNDING && first.is_finite() {
        return Err(invalid_input(format!(
            "logprobs at position {position} has the entry {first}: log-probabilities are at most 0; \
             these may be probabilities or logits, which no logprob_floor mends"
        )));
    }
    if floor.is_none() && last <= MASKED && last.is_finite() {
        return Err(invalid_input(format!(
            "logprobs at position {position} has the entry {last}, which is what servers report of \
             masked tokens: set logprob_floor, for instance to -100"
        )));
    }
    Ok(confidence(counted, floor))
}

/// Token confidences of vLLM's flat log-probabilities.
///
/// A row is the sampled token, then the k most likely: k + 1 entries. Where vLLM has merged chunks that
/// were not fetched in time it drops the second entry of a sampled token that is among the top k, which
/// leaves k entries in another order.
///
/// Args:
///     logprobs: the entries of n rows one after the other, nats.
///     ends: `[n]`, where each row ends.
///     ranks: the rank of each entry, counted from 1.
///     k: how many of the most likely tokens count, at least 2; None for as many as there are.
///     returned: whether a sampled token whose rank is beyond k counts too.
///     floor: raises smaller log-probabilities to this.
///
/// Returns:
///     float32 `[n]`, nats.
#[pyfunction]
#[pyo3(signature = (logprobs, ends, ranks, k=None, returned=Given::default(), floor=None), text_signature = "(logprobs, ends, ranks, k=None, returned=False, floor=None)")]
pub fn flat_confidences<'py>(
    logprobs: &Bound<'py, PyAny>,
    ends: &Bound<'py, PyAny>,
    ranks: &Bound<'py, PyAny>,
    k: Option<&Bound<'py, PyAny>>,
    returned: Given<'py>,
    floor: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let Rules { k, returned, floor } = Rules::read(k, &returned, floor)?;
    let logprobs = object::<PyList>(logprobs, "logprobs", "a list")?;
    let ranks = object::<PyList>(ranks, "ranks", "a list")?;
    let values = logprobs.iter().map(|item| number(&item, "an entry of logprobs"));
    let mut values = values.collect::<PyResult<Vec<_>>>()?;
    let ends = integers(ends, "ends")?;
    let ends = ends.as_slice()?.iter().map(|&end| {
        usize::try_from(end).map_err(|_| invalid_input(format!("ends holds {end}: out of range")))
    });
    let ends = ends.collect::<PyResult<Vec<_>>>()?;
    if ranks.len() != values.len() || ends.last().copied().unwrap_or(0) != values.len() {
        return Err(invalid_input(format!(
            "{} logprobs with {} ranks in rows up to {:?}: there must be as many of each",
            values.len(),
            ranks.len(),
            ends.last()
        )));
    }
    if let Some(row) = ends.windows(2).position(|pair| pair[0] > pair[1]) {
        return Err(invalid_input(format!(
            "the row at position {} ends at {} and the next at {}: must not fall",
            row,
            ends[row],
            ends[row + 1]
        )));
    }
    let rank = |at: usize| optional(&ranks.get_item(at)?, "an entry of ranks", whole::<usize>);
    let starts = || std::iter::once(0).chain(ends.iter().copied());
    let k = match k {
        Some(k) => k,
        None => {
            let mut highest = 1;
            for (start, &end) in starts().zip(&ends) {
                for at in start + 1..end {
                    highest = highest.max(rank(at)?.unwrap_or(0));
                }
            }
            highest
        }
    };
    let widths = starts().zip(&ends).map(|(start, &end)| end.saturating_sub(start));
    if let Some((position, entries)) = widths.enumerate().min_by_key(|&(_, width)| width)
        && k == 1
    {
        return Err(one_is_too_few(position, entries));
    }
    let mut confidences = Vec::with_capacity(ends.len());
    for (row, (start, &end)) in starts().zip(&ends).enumerate() {
        let width = end.saturating_sub(start);
        if !(width == k || width == k + 1) {
            return Err(invalid_input(format!(
                "logprobs at position {row} has {width} entries: must be the sampled token and the \
                 k={k} most likely"
            )));
        }
        let outside = returned && width > k && rank(start)?.is_some_and(|rank| rank > k);
        let counted = &mut values[if outside { start } else { end - k }..end];
        // Most likely first, whatever form the row came in: one order of additions.
        counted.sort_by(|a, b| b.total_cmp(a));
        confidences.push(confidence_of(counted, floor, row)?);
    }
    checked(logprobs.py(), confidences)
}

/// Token confidences of a step of vLLM's engine core: rows of many requests, one after the other.
///
/// A row is the sampled token, then the most likely ones: k at least, more where another request in the
/// batch asked for more. What is wrong with one request must cost no other, so a row with an entry that is
/// not finite gives a confidence that is not, and no error.
///
/// Args:
///     logprobs: float32 `[n, width]`, nats.
///     k: how many of the most likely tokens count, at least 2.
///     ranks: integers `[n]`, those of the sampled tokens, counted from 1, where a sampled token beyond
///         rank k counts too; None where it does not.
///     floor: raises smaller log-probabilities to this.
///
/// Returns:
///     float32 `[n]`, nats.
///
/// Raises:
///     InvalidInput: not a table, k < 2, fewer than k + 1 entries in a row, or not a rank a row.
///     InvalidType: an argument of a wrong type.
#[pyfunction]
#[pyo3(signature = (logprobs, k, ranks=None, floor=None))]
pub fn row_confidences<'py>(
    logprobs: &Bound<'py, PyAny>,
    k: &Bound<'py, PyAny>,
    ranks: Option<&Bound<'py, PyAny>>,
    floor: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let k: usize = whole(k, "k")?;
    let floor = floor.map(|floor| number(floor, "floor")).transpose()?;
    check_floor(floor).and(check_k("k", k)).map_err(raise)?;
    let table = convert::array(logprobs, "logprobs")?;
    let &[n, width] = table.shape() else {
        let shape = table.shape();
        return Err(invalid_input(format!("logprobs has shape {shape:?}: must be [n, width]")));
    };
    if width <= k {
        return Err(invalid_input(format!(
            "logprobs has shape [{n}, {width}]: must have the sampled token and the k={k} most likely \
             in each row"
        )));
    }
    let ranks = ranks.map(|ranks| integers(ranks, "ranks")).transpose()?;
    let ranks = ranks.as_ref().map(|ranks| ranks.as_slice()).transpose()?;
    if ranks.is_some_and(|ranks| ranks.len() != n) {
        return Err(invalid_input(format!("ranks must have {n} entries, one for each row")));
    }
    let mut counted = Vec::with_capacity(k + 1);
    let entries = Floats::flat(&table, "logprobs")?.single()?;
    let rows = entries.as_slice()?.chunks_exact(width).enumerate();
    let confidences: Vec<f32> = rows
        .map(|(row, entries)| {
            let outside = ranks.is_some_and(|ranks| ranks[row] > k as i64);
            counted.clear();
            counted.extend_from_slice(&entries[usize::from(!outside)..=k]);
            // Most likely first, as everywhere.
            counted.sort_by(|a, b| b.total_cmp(a));
            confidence(&counted, floor)
        })
        .collect();
    Ok(confidences.into_pyarray(logprobs.py()))
}

/// Token confidences of vLLM's dict log-probabilities.
///
/// Args:
///     rows: n dicts from token id to an object with a `logprob`, nats, and perhaps its `rank`, from 1.
///     k: how many of the most likely tokens count, at least 2; None for as many as every row has, where
///         ranks say so without the sampled token's.
///     returned: whether to take every entry instead.
///     floor: raises smaller log-probabilities to this.
///
/// Returns:
///     float32 `[n]`, nats.
#[pyfunction]
#[pyo3(signature = (rows, k=None, returned=Given::default(), floor=None), text_signature = "(rows, k=None, returned=False, floor=None)")]
pub fn dict_confidences<'py>(
    rows: &Bound<'py, PyAny>,
    k: Option<&Bound<'py, PyAny>>,
    returned: Given<'py>,
    floor: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let mut rules = Rules::read(k, &returned, floor)?;
    let (py, rows) = (rows.py(), object::<PyList>(rows, "rows", "a list")?);
    let logprob = intern!(py, "logprob");
    let mut table = Table::default();
    for (position, row) in rows.iter().enumerate() {
        let wrong = |what: String| {
            invalid_type(format!(
                "logprobs at position {position}: {what}; must be a dict from token id to Logprob"
            ))
        };
        let row = row.cast::<PyDict>().map_err(|_| wrong(kind(&row)))?;
        for entry in row.values() {
            let value = entry.getattr(logprob).and_then(|value| value.extract::<f64>());
            let value = value.map_err(|_| wrong(format!("an entry is a {}", kind(&entry))));
            table.entries.push(value?);
        }
        table.ends.push(table.entries.len());
    }
    // Rows of one length: of the most likely only, or all of them with a sampled token that is none.
    if rules.k.is_none()
        && let Some(width) = table.width()
        && any_rank_beyond(rows, width)
    {
        if width == 2 {
            return Err(one_is_too_few(0, width));
        }
        rules.k = Some(width - 1);
    }
    table.confidences(py, 1, &rules)
}

/// Whether an entry's rank is known and higher than this.
fn any_rank_beyond(rows: &Bound<'_, PyList>, width: usize) -> bool {
    let name = intern!(rows.py(), "rank");
    let rank = |entry: Bound<'_, PyAny>| entry.getattr(name).and_then(|rank| rank.extract()).ok();
    let beyond = |entry| rank(entry).is_some_and(|rank: usize| rank > width);
    rows.iter()
        .filter_map(|row| row.cast_into::<PyDict>().ok())
        .any(|row| row.values().iter().any(beyond))
}

/// Token confidences of OpenAI-style log-probabilities, as JSON is parsed or as client objects.
///
/// Args:
///     logprobs: of chat completions, with `content`: n entries with `token`, `logprob` and
///         `top_logprobs`, a list of such entries. Or of completions, with `top_logprobs`: n dicts
///         from token to log-probability.
///     k: how many of the most likely tokens count, at least 2; None for as many as every row has.
///     returned: whether to take every entry instead, the sampled token's too.
///     floor: raises smaller log-probabilities to this.
///
/// Returns:
///     float32 `[n]`, nats.
#[pyfunction]
#[pyo3(signature = (logprobs, k=None, returned=Given::default(), floor=None), text_signature = "(logprobs, k=None, returned=False, floor=None)")]
pub fn openai_confidences<'py>(
    logprobs: &Bound<'py, PyAny>,
    k: Option<&Bound<'py, PyAny>>,
    returned: Given<'py>,
    floor: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let rules = Rules::read(k, &returned, floor)?;
    let py = logprobs.py();
    let mut table = Table::default();
    let mut spare = 1;
    if let Some(content) = field(logprobs, intern!(py, "content"))? {
        spare = usize::from(rules.returned);
        for (position, entry) in content.try_iter()?.enumerate() {
            let (entry, wrong) = (entry?, |what: &str| wrong_entry(position, what));
            let top = field(&entry, intern!(py, "top_logprobs"))?
                .ok_or_else(|| wrong("has no top_logprobs"))?;
            let sampled = field(&entry, intern!(py, "token"))?;
            let mut among = !rules.returned;
            for likely in top.try_iter()? {
                let likely = likely?;
                table.entries.push(logprob(&likely, position)?);
                among = among
                    || field(&likely, intern!(py, "token"))?.is_some_and(|token| {
                        sampled.as_ref().is_some_and(|sampled| token.eq(sampled).unwrap_or(false))
                    });
            }
            if !among {
                table.entries.push(logprob(&entry, position)?);
            }
            table.ends.push(table.entries.len());
        }
    } else if let Some(rows) = field(logprobs, intern!(py, "top_logprobs"))? {
        for (position, row) in rows.try_iter()?.enumerate() {
            let row = row?;
            let row = row
                .cast::<PyDict>()
                .map_err(|_| wrong_entry(position, "is no dict from token to log-probability"))?;
            for value in row.values() {
                let value = value.extract::<f64>();
                let number = || wrong_entry(position, "has a log-probability that is no number");
                table.entries.push(value.map_err(|_| number())?);
            }
            table.ends.push(table.entries.len());
        }
    } else {
        return Err(invalid_input(
            "logprobs has neither content nor top_logprobs: ask the server for them, with \
             logprobs=True and top_logprobs=20 for chat, or logprobs=20",
        ));
    }
    table.confidences(py, spare, &rules)
}

fn wrong_entry(position: usize, what: &str) -> PyErr {
    invalid_type(format!("logprobs at position {position} {what}"))
}

/// A field of parsed JSON or of an object; `None` where it is missing or None.
fn field<'py>(
    of: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let value = match of.cast::<PyDict>() {
        Ok(dict) => dict.get_item(name)?,
        Err(_) => of.getattr_opt(name)?,
    };
    Ok(value.filter(|value| !value.is_none()))
}

fn logprob(entry: &Bound<'_, PyAny>, position: usize) -> PyResult<f64> {
    let value = field(entry, intern!(entry.py(), "logprob"))?;
    value
        .and_then(|value| value.extract().ok())
        .ok_or_else(|| wrong_entry(position, "has an entry without a number as logprob"))
}

/// Rows of log-probabilities, of k entries or more.
struct Table {
    entries: Vec<f64>,
    /// Where rows end, after a 0.
    ends: Vec<usize>,
}

impl Default for Table {
    fn default() -> Self {
        Self { entries: Vec::new(), ends: vec![0] }
    }
}

impl Table {
    /// How many entries every row has, if that is the same.
    fn width(&self) -> Option<usize> {
        let mut widths = self.ends.windows(2).map(|end| end[1] - end[0]);
        let first = widths.next()?;
        widths.all(|width| width == first).then_some(first)
    }

    /// Of the `k` most likely, or of all that were returned. Without a `k`, rows may have `spare` entries
    /// more than the shortest.
    fn confidences<'py>(
        self,
        py: Python<'py>,
        spare: usize,
        rules: &Rules,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let &Rules { k, returned, floor } = rules;
        let Self { mut entries, ends } = self;
        let widths = ends.windows(2).map(|end| end[1] - end[0]).enumerate();
        let Some((position, shortest)) = widths.min_by_key(|&(_, width)| width) else {
            return checked(py, Vec::new());
        };
        if k.is_none() && shortest == 1 {
            return Err(one_is_too_few(position, shortest));
        }
        // The entry that some may have more is that of the sampled token.
        let longer = |&(_, end): &(usize, &[usize])| end[1] - end[0] > shortest + spare;
        if k.is_none()
            && let Some((other, end)) = ends.windows(2).enumerate().find(longer)
        {
            return Err(invalid_input(format!(
                "logprobs at position {position} has {shortest} entries, and at position {other} {}: \
                 how many are to count, k={shortest} or less?",
                end[1] - end[0]
            )));
        }
        let k = k.unwrap_or(shortest).max(2);
        if shortest < k {
            return Err(invalid_input(format!(
                "logprobs at position {position} has {shortest} entries: at least k={k} are needed"
            )));
        }
        let mut confidences = Vec::with_capacity(ends.len() - 1);
        for (position, end) in ends.windows(2).enumerate() {
            let row = &mut entries[end[0]..end[1]];
            row.sort_by(|a, b| b.total_cmp(a));
            let counted = if returned { row } else { &row[..k] };
            confidences.push(confidence_of(counted, floor, position)?);
        }
        checked(py, confidences)
    }
}
