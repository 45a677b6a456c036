//! The policy: every setting of a run, by name.

use deepconf_core::policy::{self, Calibrate, Entries, Measure, Mode, Over, Stop, Weight};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::convert::{number, optional, whole};
use crate::error::{invalid_type, raise};

/// Every setting of a run; immutable.
///
/// Make one with `Policy.low`, `Policy.high`, `Policy.offline` or `Policy.preset`, each of which takes
/// any setting as a keyword; `replace` gives a changed copy. Settings are read as attributes.
///
/// Raises:
///     InvalidInput: a setting is out of range.
///     InvalidType: a setting is unknown or of the wrong type.
#[pyclass(frozen, eq, module = "deepconf", name = "Policy")]
#[derive(Clone, PartialEq)]
pub struct Policy(pub policy::Policy);

/// Declares the settings once, for reading and for writing: `name: how it is read, how it is shown`.
macro_rules! settings {
    ($($name:ident: $read:expr, $show:expr;)+) => {
        const SETTINGS: &[&str] = &[$(stringify!($name)),+];

        fn set(policy: &mut policy::Policy, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
            match name {
                $(stringify!($name) => policy.$name = $read(value, name)?,)+
                _ => return Err(unknown(name)),
            }
            Ok(())
        }

        fn get<'py>(py: Python<'py>, policy: &policy::Policy, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
            match name {
                $(stringify!($name) => Ok(Some($show(policy.$name).into_bound_py_any(py)?)),)+
                _ => Ok(None),
            }
        }
    };
}

settings! {
    mode: named(Mode::from_name), Mode::name;
    budget: whole, same;
    warmup: whole, same;
    concurrency: maybe(whole), same;
    seed: whole, same;
    top_logprobs: whole, same;
    entries: named(Entries::from_name), Entries::name;
    logprob_floor: maybe(number), same;
    decimals: maybe(whole), same;
    window: whole, same;
    tail: whole, same;
    bottom: number, same;
    keep: number, same;
    measure: named(Measure::from_name), Measure::name;
    weight: named(Weight::from_name), Weight::name;
    max_weight: maybe(number), same;
    stop: named(Stop::from_name), Stop::name;
    consensus: number, same;
    min_ballots: whole, same;
    calibrate_on: named(Calibrate::from_name), Calibrate::name;
    percentile_over: named(Over::from_name), Over::name;
    stopped_vote: truth, same;
}

fn same<T>(value: T) -> T {
    value
}

fn truth(value: &Bound<'_, PyAny>, name: &str) -> PyResult<bool> {
    value.extract().map_err(|_| invalid_type(format!("{name}={value}: must be True or False")))
}

fn maybe<'py, T>(
    read: impl Fn(&Bound<'py, PyAny>, &str) -> PyResult<T>,
) -> impl Fn(&Bound<'py, PyAny>, &str) -> PyResult<Option<T>> {
    move |value, name| optional(value, name, &read)
}

fn named<'py, T>(
    from_name: fn(&str) -> deepconf_core::Result<T>,
) -> impl Fn(&Bound<'py, PyAny>, &str) -> PyResult<T> {
    move |value, name| match value.extract::<String>() {
        Ok(text) => from_name(&text).map_err(raise),
        Err(_) => Err(invalid_type(format!("{name}={value}: must be a string"))),
    }
}

fn unknown(name: &str) -> PyErr {
    invalid_type(format!("unknown setting {name:?}: the settings are {}", SETTINGS.join(", ")))
}

impl Policy {
    fn with(mut policy: policy::Policy, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        for (name, value) in settings.into_iter().flatten() {
            set(&mut policy, &name.extract::<String>()?, &value)?;
        }
        policy.check().map_err(raise)?;
        Ok(Self(policy))
    }
}

#[pymethods]
impl Policy {
    /// `Policy.low` with the settings given changed.
    #[new]
    #[pyo3(signature = (**settings))]
    fn new(settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::preset("low", settings)
    }

    /// The preset of that name, with the settings given changed.
    ///
    /// Raises:
    ///     UnknownPreset: there is no such preset; the message lists them.
    ///     InvalidInput: a setting is out of range.
    ///     InvalidType: a setting is unknown or of the wrong type.
    #[staticmethod]
    #[pyo3(signature = (name, /, **settings))]
    fn preset(name: &str, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::with(policy::Policy::preset(name).map_err(raise)?, settings)
    }

    /// DeepConf-low: online, keeps the top 10%.
    #[staticmethod]
    #[pyo3(signature = (**settings))]
    fn low(settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::preset("low", settings)
    }

    /// DeepConf-high: online, keeps the top 90%.
    #[staticmethod]
    #[pyo3(signature = (**settings))]
    fn high(settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::preset("high", settings)
    }

    /// All traces run to their end; the top 10% vote.
    #[staticmethod]
    #[pyo3(signature = (**settings))]
    fn offline(settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::preset("offline", settings)
    }

    /// The names of the presets.
    #[staticmethod]
    fn presets() -> Vec<&'static str> {
        policy::PRESETS.to_vec()
    }

    /// A copy with these settings changed.
    #[pyo3(signature = (**settings))]
    fn replace(&self, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::with(self.0.clone(), settings)
    }

    /// All settings by name, as plain values.
    fn as_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let settings = PyDict::new(py);
        for name in SETTINGS {
            settings.set_item(name, get(py, &self.0, name)?)?;
        }
        Ok(settings)
    }

    fn __getattr__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        get(py, &self.0, name)?
            .ok_or_else(|| PyAttributeError::new_err(format!("Policy has no setting {name:?}")))
    }

    fn __dir__(&self) -> Vec<&'static str> {
        let methods = ["preset", "low", "high", "offline", "presets", "replace", "as_dict"];
        SETTINGS.iter().copied().chain(methods).collect()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let mut settings = Vec::new();
        for name in SETTINGS {
            settings.push(format!("{name}={}", self.__getattr__(py, name)?.repr()?));
        }
        Ok(format!("Policy({})", settings.join(", ")))
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        self.__repr__(py)?.into_pyobject(py)?.hash()
    }

    fn __getnewargs_ex__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        Ok((PyTuple::empty(py), self.as_dict(py)?))
    }
}
