//! Every setting of a run, and the presets.
//!
//! | preset | mode | keep η | notes |
//! |---|---|---|---|
//! | `low` | online | 0.10 | DeepConf-low: aggressive, fewest tokens |
//! | `high` | online | 0.90 | DeepConf-high: conservative |
//! | `offline` | offline | 0.10 | all traces to their end, then filter and vote |
//! | `paper-low`, `paper-high` | online | 0.10, 0.90 | to the letter: no floor of ballots, percentiles over all traces |
//! | `official-low`, `official-high` | online | 0.10, 0.90 | what the authors' published code does |
//!
//! ```
//! use deepconf_core::policy::{Policy, Preset, Stop};
//!
//! let policy = Policy::new(Preset::Low).budget(64).stop(Stop::Budget);
//! policy.check()?;
//! assert_eq!((policy.keep, policy.warmup, policy.window), (0.10, 16, 2_048));
//! # Ok::<(), deepconf_core::Error>(())
//! ```

use crate::error::{Error, Result};
use crate::settings::settings;
use crate::token::{check_floor, check_k};
use crate::trace::{Scores, Settings};
use crate::vote::check_keep;

/// Declares an enum whose variants go by a name, both ways.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident, $setting:literal { $($(#[$about:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $type { $($(#[$about])* $variant),+ }

        impl $type {
            /// The names there are.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The variant's name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// The variant of that name.
            ///
            /// # Errors
            /// [`Error::Setting`] listing the names there are.
            pub fn from_name(name: &str) -> Result<Self> {
                match name {
                    $($name => Ok(Self::$variant),)+
                    _ => {
                        let expected = format!("must be one of {}", Self::NAMES.join(", "));
                        Err(Error::setting($setting, format!("{name:?}"), expected))
                    }
                }
            }
        }
    };
}

named! {
    /// A policy to begin with: see the [module](self).
    Preset, "preset" {
        /// DeepConf-low.
        Low = "low",
        /// DeepConf-high.
        High = "high",
        /// All traces to their end, then filter and vote.
        Offline = "offline",
        /// DeepConf-low to the letter of the paper.
        PaperLow = "paper-low",
        /// DeepConf-high to the letter of the paper.
        PaperHigh = "paper-high",
        /// DeepConf-low as the authors' published code has it.
        OfficialLow = "official-low",
        /// DeepConf-high as the authors' published code has it.
        OfficialHigh = "official-high",
    }
}

named! {
    /// Whether traces are stopped while they are generated.
    Mode, "mode" {
        /// Warmup traces set a threshold; the others are stopped when a group falls below it.
        Online = "online",
        /// All traces run to their end and are filtered afterwards.
        Offline = "offline",
    }
}

named! {
    /// When sampling ends before the budget is spent.
    Stop, "stop" {
        /// When the leading answer's share reaches τ.
        Consensus = "consensus",
        /// When no running or remaining trace can change the winner any more.
        Certain = "certain",
        /// Never.
        Budget = "budget",
    }
}

named! {
    /// A trace-level confidence.
    Measure, "measure" {
        /// Average trace confidence.
        Mean = "mean",
        /// Lowest group confidence.
        LowestGroup = "lowest_group",
        /// Bottom-q group confidence.
        BottomGroup = "bottom_group",
        /// Tail confidence.
        Tail = "tail",
    }
}

named! {
    /// What a vote weighs.
    Weight, "weight" {
        /// Every vote weighs 1.
        Majority = "majority",
        /// Average trace confidence.
        Mean = "mean",
        /// Lowest group confidence.
        LowestGroup = "lowest_group",
        /// Bottom-q group confidence.
        BottomGroup = "bottom_group",
        /// Tail confidence.
        Tail = "tail",
    }
}

named! {
    /// Which log-probabilities make a token confidence.
    Entries, "entries" {
        /// Exactly the k most likely tokens.
        TopK = "topk",
        /// All that the server returned: k + 1 when the sampled token is outside the top k.
        Returned = "returned",
    }
}

named! {
    /// Which warmup traces set the threshold.
    Calibrate, "calibrate_on" {
        /// Those that ended by themselves.
        Finished = "finished",
        /// Those cut at the length limit too.
        All = "all",
    }
}

named! {
    /// Which traces an offline filter's percentile is taken over.
    Over, "percentile_over" {
        /// Those with an answer.
        Answered = "answered",
        /// All.
        All = "all",
    }
}

impl Measure {
    /// This measure of a trace.
    #[must_use]
    pub fn of(self, scores: &Scores) -> f64 {
        match self {
            Self::Mean => scores.mean,
            Self::LowestGroup => scores.lowest_group,
            Self::BottomGroup => scores.bottom_group,
            Self::Tail => scores.tail,
        }
    }
}

impl Weight {
    /// The measure a vote weighs; `None` for a head count.
    #[must_use]
    pub fn measure(self) -> Option<Measure> {
        match self {
            Self::Majority => None,
            Self::Mean => Some(Measure::Mean),
            Self::LowestGroup => Some(Measure::LowestGroup),
            Self::BottomGroup => Some(Measure::BottomGroup),
            Self::Tail => Some(Measure::Tail),
        }
    }
}

settings! {
    /// Every setting of a run.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Policy {
        /// Whether traces are stopped while they are generated.
        pub mode: Mode,
        /// B: traces in all, warmup included.
        pub budget: u32,
        /// Traces that run to their end and set the threshold (online).
        pub warmup: u32,
        /// How many traces may run at once; `None` for as many as there are.
        pub concurrency: Option<u32>,
        /// Trace i is sampled with seed `seed + i`; `None` for the engine to draw for itself.
        pub seed: Option<u64>,

        /// k: log-probabilities a token, at least 2.
        pub top_logprobs: u32,
        /// Which of them make a token confidence.
        pub entries: Entries,
        /// Raises smaller log-probabilities (−∞ or −9999 of masked tokens) to this.
        pub logprob_floor: Option<f64>,
        /// Rounds the recomputed token and lowest-group confidences to so many decimals.
        pub decimals: Option<u8>,
        /// w: tokens in a group.
        pub window: u64,
        /// t: tokens in the tail.
        pub tail: u64,
        /// q of the bottom-q group confidence.
        pub bottom: f64,

        /// η: the fraction of traces to keep.
        pub keep: f64,
        /// What an offline filter ranks by. (Online it is the lowest group confidence, always.)
        pub measure: Measure,
        /// What a vote weighs.
        pub weight: Weight,
        /// Weights are clipped to this, which gives `stop = "certain"` a bound to reckon with.
        pub max_weight: Option<f64>,
        /// When sampling ends before the budget is spent.
        pub stop: Stop,
        /// τ: the share that is a consensus.
        pub consensus: f64,
        /// Fewer ballots are no consensus, and make a filtered vote fall back to the unfiltered one.
        pub min_ballots: u32,
        /// Which warmup traces set the threshold.
        pub calibrate_on: Calibrate,
        /// Which traces an offline percentile is taken over.
        pub percentile_over: Over,
        /// Whether a stopped or truncated trace with an answer may vote online, if its recomputed lowest
        /// group reaches the threshold.
        pub stopped_vote: bool,
    }
}

/// A seed must be below this: vLLM keeps it in 64 bits with a sign.
const SEEDS: u64 = 1 << 63;

/// The most traces that a run may have.
pub const MAX_BUDGET: u32 = 1_000_000;

impl Policy {
    /// The preset of that name.
    ///
    /// # Errors
    /// [`Error::UnknownPreset`] listing the names there are.
    pub fn preset(name: &str) -> Result<Self> {
        Preset::from_name(name).map(Self::new).map_err(|_| Error::UnknownPreset {
            name: name.into(),
            known: Preset::NAMES.join(", "),
        })
    }

    /// A preset's settings.
    #[must_use]
    pub fn new(preset: Preset) -> Self {
        let low = Self {
            mode: Mode::Online,
            budget: 256,
            warmup: 16,
            concurrency: None,
            seed: Some(0),
            top_logprobs: 20,
            entries: Entries::TopK,
            logprob_floor: None,
            decimals: None,
            window: 2_048,
            tail: 2_048,
            bottom: 0.10,
            keep: 0.10,
            measure: Measure::LowestGroup,
            weight: Weight::LowestGroup,
            max_weight: None,
            stop: Stop::Consensus,
            consensus: 0.95,
            min_ballots: 3,
            calibrate_on: Calibrate::Finished,
            percentile_over: Over::Answered,
            stopped_vote: false,
        };
        let paper = Self { min_ballots: 0, percentile_over: Over::All, ..low.clone() };
        let official = Self {
            min_ballots: 0,
            entries: Entries::Returned,
            decimals: Some(3),
            weight: Weight::Majority,
            stop: Stop::Budget,
            calibrate_on: Calibrate::All,
            stopped_vote: true,
            ..low.clone()
        };
        match preset {
            Preset::Low => low,
            Preset::High => low.keep(0.90),
            Preset::Offline => low
                .mode(Mode::Offline)
                .warmup(0)
                .measure(Measure::BottomGroup)
                .weight(Weight::BottomGroup)
                .stop(Stop::Budget),
            Preset::PaperLow => paper,
            Preset::PaperHigh => paper.keep(0.90),
            Preset::OfficialLow => official,
            Preset::OfficialHigh => official.keep(0.90),
        }
    }

    /// Checks every setting, and that they fit together.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that is wrong.
    pub fn check(&self) -> Result<()> {
        self.check_counts()?;
        self.settings().check()?;
        check_floor(self.logprob_floor)?;
        check_keep(self.keep)?;
        if !(self.consensus > 0.0 && self.consensus <= 1.0) {
            let expected = "must be a share of the vote, in (0, 1]";
            return Err(Error::setting("consensus", self.consensus, expected));
        }
        if let Some(max) = self.max_weight.filter(|max| !(max.is_finite() && *max > 0.0)) {
            return Err(Error::setting("max_weight", max, "must be finite and above 0"));
        }
        if self.stop == Stop::Certain && self.mode == Mode::Offline && self.keep < 1.0 {
            let expected = "an offline filter with keep < 1 can change the winner until the last \
                            trace: use keep=1.0, or mode=\"online\"";
            return Err(Error::setting("stop", "\"certain\"", expected));
        }
        Ok(())
    }

    fn check_counts(&self) -> Result<()> {
        for (name, value) in [("budget", Some(self.budget)), ("concurrency", self.concurrency)] {
            if let Some(value) = value.filter(|value| !(1..=MAX_BUDGET).contains(value)) {
                let expected = format!("must be between 1 and {MAX_BUDGET} traces");
                return Err(Error::setting(name, value, expected));
            }
        }
        check_k("top_logprobs", self.top_logprobs as usize)?;
        if let Some(seed) = self.seed.filter(|&seed| seed > SEEDS - u64::from(self.budget)) {
            let expected = format!(
                "seed + budget (here {}) must not exceed 2^63 = {SEEDS}, beyond which vLLM has no seeds",
                self.budget
            );
            return Err(Error::setting("seed", seed, expected));
        }
        match self.mode {
            Mode::Online if self.warmup == 0 => {
                Err(Error::setting("warmup", 0, "online, at least 1 trace must set the threshold"))
            }
            Mode::Online if self.warmup > self.budget => {
                let expected = format!("must not exceed the budget of {} traces", self.budget);
                Err(Error::setting("warmup", self.warmup, expected))
            }
            Mode::Offline if self.warmup > 0 => Err(Error::setting(
                "warmup",
                self.warmup,
                "must be 0 offline, where nothing is stopped",
            )),
            _ => Ok(()),
        }
    }

    /// What whole-trace scores are computed with. (`decimals` is for the recomputed scores only.)
    #[must_use]
    pub fn settings(&self) -> Settings {
        let Self { window, tail, bottom, decimals, .. } = *self;
        Settings { window, tail, bottom: Some(bottom), decimals }
    }

    /// What a running trace is followed with: it keeps all its tokens only where that is asked for.
    pub(crate) fn live(&self) -> Settings {
        let needs_bottom = self.measure == Measure::BottomGroup && self.mode == Mode::Offline
            || self.weight == Weight::BottomGroup;
        let bottom = needs_bottom.then_some(self.bottom);
        Settings { bottom, decimals: None, ..self.settings() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_sound() {
        for name in Preset::NAMES {
            Policy::preset(name).unwrap().check().unwrap();
        }
        assert!(Policy::preset("middling").unwrap_err().to_string().contains("paper-low"));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let low = || Policy::new(Preset::Low);
        let offline = || Policy::new(Preset::Offline);
        let wrong = [
            ("budget", low().budget(0)),
            ("warmup", low().warmup(0)),
            ("warmup", low().warmup(300)),
            ("warmup", offline().warmup(4)),
            ("budget", low().budget(MAX_BUDGET + 1)),
            ("budget", offline().budget(u32::MAX)),
            ("concurrency", low().concurrency(Some(0))),
            ("concurrency", low().concurrency(Some(MAX_BUDGET + 1))),
            ("top_logprobs", low().top_logprobs(0)),
            ("top_logprobs", low().top_logprobs(1)),
            ("seed", low().seed(Some(u64::MAX))),
            ("seed", low().seed(Some((1 << 63) - 255))),
            ("window", low().window(0)),
            ("window", low().window((1 << 31) + 1)),
            ("tail", low().tail(0)),
            ("bottom", low().bottom(0.0)),
            ("decimals", low().decimals(Some(10))),
            ("logprob_floor", low().logprob_floor(Some(1.0))),
            ("keep", low().keep(0.0)),
            ("keep", low().keep(1.1)),
            ("keep", low().keep(f64::NAN)),
            ("consensus", low().consensus(0.0)),
            ("max_weight", low().max_weight(Some(0.0))),
            ("stop", offline().stop(Stop::Certain)),
        ];
        for (name, policy) in wrong {
            let error = policy.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}=")), "{error}");
        }
    }

    #[test]
    fn the_highest_seeds_are_those_that_vllm_has() {
        let policy = Policy::preset("low").unwrap().seed(Some((1 << 63) - 256));
        policy.check().unwrap();
        policy.seed(None).check().unwrap();
    }

    #[test]
    fn names_go_both_ways() {
        assert_eq!(Stop::from_name("certain").unwrap().name(), "certain");
        assert!(Weight::from_name("median").unwrap_err().to_string().contains("lowest_group"));
    }
}
