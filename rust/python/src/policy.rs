//! The policy: every setting of a run, by name.

use deepconf_core::policy::{self, Calibrate, Entries, Measure, Mode, Over, Stop, Weight};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::convert::{maybe, number, text, truth, whole};
use crate::error::{invalid_type, raise};

/// Every setting of a run; immutable.
///
/// Make one with `Policy.low`, `Policy.high`, `Policy.offline` or `Policy.preset`, each of which takes
/// any setting as a keyword; `replace` gives a changed copy. Settings are read as attributes. A warmup
/// that is not given is the preset's, or a quarter of the budget where that is smaller.
///
/// Raises:
///     InvalidInput: a setting is out of range.
///     InvalidType: a setting is unknown or of the wrong type.
#[pyclass(frozen, eq, module = "deepconf", name = "Policy")]
#[derive(Clone)]
pub struct Policy(
    pub policy::Policy,
    /// The preset's warmup; `None` where one was given.
    Option<u32>,
);

impl From<policy::Policy> for Policy {
    fn from(policy: policy::Policy) -> Self {
        Self(policy, None)
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// Declares the settings once: `name: how it is read`.
macro_rules! settings {
    ($($name:ident: $read:expr;)+) => {
        const SETTINGS: &[&str] = &[$(stringify!($name)),+];

        fn set(policy: &mut policy::Policy, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
            match name {
                $(stringify!($name) => policy.$name = $read(value, name)?,)+
                _ => return Err(unknown(value.py(), name)),
            }
            Ok(())
        }
    };
}

settings! {
    mode: named(Mode::from_name);
    budget: whole;
    warmup: whole;
    concurrency: maybe(whole);
    seed: maybe(whole);
    top_logprobs: whole;
    entries: named(Entries::from_name);
    logprob_floor: maybe(number);
    decimals: maybe(whole);
    window: whole;
    tail: whole;
    bottom: number;
    keep: number;
    measure: named(Measure::from_name);
    weight: named(Weight::from_name);
    max_weight: maybe(number);
    stop: named(Stop::from_name);
    consensus: number;
    min_ballots: whole;
    calibrate_on: named(Calibrate::from_name);
    percentile_over: named(Over::from_name);
    stopped_vote: truth;
}

fn named<'py, T>(
    from_name: fn(&str) -> deepconf_core::Result<T>,
) -> impl Fn(&Bound<'py, PyAny>, &str) -> PyResult<T> {
    move |value, name| from_name(&text(value, name)?).map_err(raise)
}

fn unknown(py: Python<'_>, name: &str) -> PyErr {
    let close = py.import("difflib").and_then(|difflib| {
        difflib.call_method1("get_close_matches", (name, SETTINGS, 1))?.extract::<Vec<String>>()
    });
    let meant = close.ok().and_then(|mut close| close.pop());
    let hint = meant.map_or(String::new(), |meant| format!("did you mean {meant}? "));
    invalid_type(format!(
        "unknown setting {name:?}: {hint}The settings are {}",
        SETTINGS.join(", ")
    ))
}

impl Policy {
    fn of(preset: &str, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let policy = policy::Policy::preset(preset).map_err(raise)?;
        let warmup = Some(policy.warmup);
        Self(policy, warmup).with(settings)
    }

    fn with(mut self, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        for (name, value) in settings.into_iter().flatten() {
            let name = name.extract::<String>()?;
            set(&mut self.0, &name, &value)?;
            if name == "warmup" {
                self.1 = None;
            }
        }
        if let Some(preset) = self.1.filter(|_| self.0.mode == Mode::Online) {
            self.0.warmup = preset.min((self.0.budget / 4).max(1));
        }
        self.0.check().map_err(raise)?;
        Ok(self)
    }
}

#[pymethods]
impl Policy {
    /// `Policy.low` with the settings given changed.
    #[new]
    #[pyo3(signature = (**settings))]
    fn new(settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::of("low", settings)
    }

    /// The preset of that name, with the settings given changed.
    ///
    /// Raises:
    ///     UnknownPreset: there is no such preset; the message lists them.
    ///     InvalidInput: a setting is out of range.
    ///     InvalidType: a setting is unknown or of the wrong type.
    #[staticmethod]
    #[pyo3(signature = (name, /, **settings))]
    fn preset(name: &Bound<'_, PyAny>, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::of(&text(name, "name")?, settings)
    }

    /// DeepConf-low: online, keeps the top 10%.
    #[staticmethod]
    #[pyo3(signature = (**settings))]
    fn low(settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::of("low", settings)
    }

    /// DeepConf-high: online, keeps the top 90%.
    #[staticmethod]
    #[pyo3(signature = (**settings))]
    fn high(settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::of("high", settings)
    }

    /// All traces run to their end; the top 10% vote.
    #[staticmethod]
    #[pyo3(signature = (**settings))]
    fn offline(settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::of("offline", settings)
    }

    /// The names of the presets.
    #[staticmethod]
    fn presets() -> Vec<&'static str> {
        policy::Preset::NAMES.to_vec()
    }

    /// A copy with these settings changed.
    #[pyo3(signature = (**settings))]
    fn replace(&self, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        self.clone().with(settings)
    }

    /// "online": stopped while generated; "offline": run to their end, then filtered.
    #[getter]
    fn mode(&self) -> &'static str {
        self.0.mode.name()
    }

    /// B: traces in all, warmup included.
    #[getter]
    fn budget(&self) -> u32 {
        self.0.budget
    }

    /// Traces that run to their end and set the threshold; 0 offline.
    #[getter]
    fn warmup(&self) -> u32 {
        self.0.warmup
    }

    /// How many traces may run at once; None for as many as there are.
    #[getter]
    fn concurrency(&self) -> Option<u32> {
        self.0.concurrency
    }

    /// Trace i is sampled with seed `seed + i`; None for the engine to draw for itself.
    #[getter]
    fn seed(&self) -> Option<u64> {
        self.0.seed
    }

    /// k: log-probabilities a token, at least 2.
    #[getter]
    fn top_logprobs(&self) -> u32 {
        self.0.top_logprobs
    }

    /// Which of them make a token confidence: "topk" or "returned", all that came back.
    #[getter]
    fn entries(&self) -> &'static str {
        self.0.entries.name()
    }

    /// Raises smaller log-probabilities (-inf or -9999 of masked tokens) to this, nats.
    #[getter]
    fn logprob_floor(&self) -> Option<f64> {
        self.0.logprob_floor
    }

    /// Rounds the recomputed token and lowest-group confidences to so many decimals.
    #[getter]
    fn decimals(&self) -> Option<u8> {
        self.0.decimals
    }

    /// w: tokens in a group.
    #[getter]
    fn window(&self) -> u64 {
        self.0.window
    }

    /// t: tokens in the tail.
    #[getter]
    fn tail(&self) -> u64 {
        self.0.tail
    }

    /// q: the fraction of the groups in the bottom-group score.
    #[getter]
    fn bottom(&self) -> f64 {
        self.0.bottom
    }

    /// η: the fraction of traces to keep.
    #[getter]
    fn keep(&self) -> f64 {
        self.0.keep
    }

    /// What an offline filter ranks by: "mean", "lowest_group", "bottom_group" or "tail".
    #[getter]
    fn measure(&self) -> &'static str {
        self.0.measure.name()
    }

    /// What a vote weighs: a measure, or "majority" for a head count.
    #[getter]
    fn weight(&self) -> &'static str {
        self.0.weight.name()
    }

    /// Weights are clipped to this, nats.
    #[getter]
    fn max_weight(&self) -> Option<f64> {
        self.0.max_weight
    }

    /// When sampling ends before the budget is spent: "consensus", "certain", or "budget", never.
    #[getter]
    fn stop(&self) -> &'static str {
        self.0.stop.name()
    }

    /// τ: the share that is a consensus.
    #[getter]
    fn consensus(&self) -> f64 {
        self.0.consensus
    }

    /// Fewer ballots are no consensus, and make a filtered vote fall back to the unfiltered one.
    #[getter]
    fn min_ballots(&self) -> u32 {
        self.0.min_ballots
    }

    /// Which warmup traces set the threshold: "finished", or "all", those cut too.
    #[getter]
    fn calibrate_on(&self) -> &'static str {
        self.0.calibrate_on.name()
    }

    /// Which traces an offline percentile is taken over: "answered" or "all".
    #[getter]
    fn percentile_over(&self) -> &'static str {
        self.0.percentile_over.name()
    }

    /// Whether a stopped or cut trace may vote online, if its lowest group reaches the threshold.
    #[getter]
    fn stopped_vote(&self) -> bool {
        self.0.stopped_vote
    }

    /// All settings by name, as plain values.
    fn as_dict<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        let settings = PyDict::new(slf.py());
        for name in SETTINGS {
            settings.set_item(name, slf.getattr(*name)?)?;
        }
        Ok(settings)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let mut settings = Vec::new();
        for name in SETTINGS {
            settings.push(format!("{name}={}", slf.getattr(*name)?.repr()?));
        }
        Ok(format!("Policy({})", settings.join(", ")))
    }

    fn __hash__(slf: &Bound<'_, Self>) -> PyResult<isize> {
        slf.repr()?.hash()
    }

    fn __getnewargs_ex__<'py>(
        slf: &Bound<'py, Self>,
    ) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        let settings = Self::as_dict(slf)?;
        let policy = slf.get();
        if policy.1.is_some() && policy.0.mode == Mode::Online {
            settings.del_item("warmup")?;
        }
        Ok((PyTuple::empty(slf.py()), settings))
    }
}
