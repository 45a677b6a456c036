//! The golden cases of `vectors/`, which Python reads too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use deepconf_core::controller::{Action, Controller, Finish, Outcome};
use deepconf_core::policy::{
    Calibrate, Entries, Measure, Mode, Over, Policy, Preset, Stop, Weight,
};
use deepconf_core::token::Table;
use deepconf_core::trace::{Scorer, Scores, Settings};
use deepconf_core::vote::{Rules, vote, vote_many};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

fn read<T: DeserializeOwned>(name: &str) -> T {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
}

/// The cases of a file, or of a part of it; there must be some.
fn cases<T: DeserializeOwned>(name: &str, part: &str) -> Vec<T> {
    let mut file: Map<String, Value> = read(name);
    let cases: Vec<T> = serde_json::from_value(file.remove(part).unwrap()).unwrap();
    assert!(!cases.is_empty(), "{name} has no {part}");
    cases
}

/// Equal to the last bit, or, where the expected value was rounded on another way, to 1e-12.
fn alike(name: &str, got: f64, expected: Option<f64>, tolerance: f64) {
    let expected = expected.unwrap_or(f64::NAN);
    let near = (got - expected).abs() <= tolerance * expected.abs().max(1.0);
    let same = got == expected || got.is_nan() && expected.is_nan();
    assert!(same || near, "{name}: {got}, not {expected}");
}

// ---- tokens and scores --------------------------------------------------------------------------

#[derive(Deserialize)]
struct TokenCase {
    name: String,
    logprobs: Vec<Vec<f64>>,
    k: usize,
    floor: Option<f64>,
    expected: TokenScores,
}

#[derive(Deserialize)]
struct TokenScores {
    topk: Vec<f32>,
    returned: Vec<f32>,
    entropy: Vec<f64>,
}

#[test]
fn tokens() {
    for case in cases::<TokenCase>("tokens.json", "cases") {
        let TokenCase { name, logprobs, k, floor, expected } = case;
        let width = logprobs[0].len();
        let all = logprobs.concat();
        let returned = Table::new(&all, width).unwrap().confidence(floor).unwrap();
        assert_eq!(returned, expected.returned, "{name}");
        let best: Vec<f64> = logprobs
            .iter()
            .flat_map(|row| {
                let mut row = row.clone();
                row.sort_by(|a, b| b.total_cmp(a));
                row.truncate(k);
                row
            })
            .collect();
        let best = Table::new(&best, k).unwrap();
        assert_eq!(best.confidence(floor).unwrap(), expected.topk, "{name}");
        for (got, want) in best.entropy(floor).unwrap().into_iter().zip(expected.entropy) {
            alike(&name, f64::from(got), Some(want), 1e-7);
        }
    }
}

#[derive(Deserialize)]
struct ScoreCase {
    name: String,
    confidences: Vec<f32>,
    window: u64,
    tail: u64,
    bottom: f64,
    decimals: Option<u8>,
    threshold: Option<f64>,
    expected: TraceScores,
}

#[derive(Deserialize)]
struct TraceScores {
    mean: Option<f64>,
    lowest_group: Option<f64>,
    bottom_group: Option<f64>,
    tail: Option<f64>,
    num_tokens: u64,
    short: bool,
    stop: Option<usize>,
}

fn check_scores(name: &str, got: &Scores, expected: &TraceScores, tolerance: f64) {
    alike(name, got.mean, expected.mean, tolerance);
    alike(name, got.lowest_group, expected.lowest_group, tolerance);
    alike(name, got.bottom_group, expected.bottom_group, tolerance);
    alike(name, got.tail, expected.tail, tolerance);
    assert_eq!((got.num_tokens, got.short), (expected.num_tokens, expected.short), "{name}");
}

#[test]
fn scores() {
    for case in cases::<ScoreCase>("scores.json", "cases") {
        let ScoreCase { name, confidences, window, tail, bottom, decimals, .. } = case;
        let expected = case.expected;
        // What was rounded to decimals is no whole number of quanta.
        let tolerance = if decimals.is_some() { 1e-12 } else { 0.0 };
        let settings =
            Settings::default().window(window).tail(tail).bottom(bottom).decimals(decimals);
        let scorer = Scorer::new(settings).unwrap();
        let got = scorer.score(&confidences).unwrap();
        check_scores(&name, &got, &expected, tolerance);

        let mut trace = scorer.stream(None).unwrap();
        trace.extend(&confidences).unwrap();
        check_scores(&name, &trace.scores(), &expected, tolerance);

        let mut trace = Scorer::new(settings.bottom(None)).unwrap().stream(None).unwrap();
        trace.extend(&confidences).unwrap();
        let mut without = trace.scores();
        assert!(without.bottom_group.is_nan(), "{name}");
        without.bottom_group = got.bottom_group;
        check_scores(&name, &without, &expected, tolerance);

        let live = Scorer::new(settings.decimals(None)).unwrap();
        let mut trace = live.stream(case.threshold).unwrap();
        assert_eq!(trace.extend(&confidences).unwrap(), expected.stop, "{name}");
    }
}

// ---- votes --------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct VoteCase {
    name: String,
    answers: Vec<Option<String>>,
    weights: Option<Vec<f64>>,
    scores: Option<Vec<Option<f64>>>,
    keep: f64,
    min_ballots: usize,
    percentile_over: String,
    expected: Ballots,
}

#[derive(Deserialize)]
struct Ballots {
    answer: Option<String>,
    ballots: Vec<(String, f64, usize)>,
    share: f64,
    num_voters: usize,
    threshold: Option<f64>,
    fallback: bool,
}

#[test]
fn votes() {
    for case in cases::<VoteCase>("votes.json", "cases") {
        let VoteCase { name, answers, keep, min_ballots, expected, .. } = case;
        let scores: Option<Vec<f64>> =
            case.scores.map(|scores| scores.into_iter().map(|s| s.unwrap_or(f64::NAN)).collect());
        let rules = Rules::default()
            .weights(case.weights.as_deref())
            .keep(keep)
            .scores(scores.as_deref())
            .min_ballots(min_ballots)
            .over_all(case.percentile_over == "all");
        let got = vote(&answers, &rules).unwrap();
        let answer = |row: usize| answers[row].clone().unwrap();
        let ballots: Vec<_> =
            got.ballots.iter().map(|b| (answer(b.first), b.weight, b.voters)).collect();
        assert_eq!(ballots, expected.ballots, "{name}");
        assert_eq!(got.winner().map(|b| answer(b.first)), expected.answer, "{name}");
        alike(&name, got.share, Some(expected.share), 1e-12);
        alike(&name, got.threshold.unwrap_or(f64::NAN), expected.threshold, 1e-12);
        assert_eq!(
            (got.num_voters, got.fallback),
            (expected.num_voters, expected.fallback),
            "{name}"
        );

        let many = vote_many(&vec!["q"; answers.len()], &answers, &rules).unwrap();
        if answers.is_empty() {
            assert!(many.question_rows.is_empty());
            continue;
        }
        assert_eq!(many.answer_rows[0].map(answer), expected.answer, "{name}");
        assert_eq!(
            (many.num_voters[0], many.fallback[0]),
            (expected.num_voters, expected.fallback),
            "{name}"
        );
    }
}

// ---- presets ------------------------------------------------------------------------------------

fn as_json(policy: &Policy) -> Value {
    json!({
        "mode": policy.mode.name(),
        "budget": policy.budget,
        "warmup": policy.warmup,
        "concurrency": policy.concurrency,
        "seed": policy.seed,
        "top_logprobs": policy.top_logprobs,
        "entries": policy.entries.name(),
        "logprob_floor": policy.logprob_floor,
        "decimals": policy.decimals,
        "window": policy.window,
        "tail": policy.tail,
        "bottom": policy.bottom,
        "keep": policy.keep,
        "measure": policy.measure.name(),
        "weight": policy.weight.name(),
        "max_weight": policy.max_weight,
        "stop": policy.stop.name(),
        "consensus": policy.consensus,
        "min_ballots": policy.min_ballots,
        "calibrate_on": policy.calibrate_on.name(),
        "percentile_over": policy.percentile_over.name(),
        "stopped_vote": policy.stopped_vote,
    })
}

fn from_json(settings: &Value) -> Policy {
    fn get<T: DeserializeOwned>(settings: &Value, name: &str) -> T {
        serde_json::from_value(settings[name].clone()).unwrap()
    }
    let named = |name: &str| -> String { get(settings, name) };
    Policy::new(Preset::Low)
        .mode(Mode::from_name(&named("mode")).unwrap())
        .budget(get(settings, "budget"))
        .warmup(get(settings, "warmup"))
        .concurrency(get(settings, "concurrency"))
        .seed(get(settings, "seed"))
        .top_logprobs(get(settings, "top_logprobs"))
        .entries(Entries::from_name(&named("entries")).unwrap())
        .logprob_floor(get(settings, "logprob_floor"))
        .decimals(get(settings, "decimals"))
        .window(get(settings, "window"))
        .tail(get(settings, "tail"))
        .bottom(get(settings, "bottom"))
        .keep(get(settings, "keep"))
        .measure(Measure::from_name(&named("measure")).unwrap())
        .weight(Weight::from_name(&named("weight")).unwrap())
        .max_weight(get(settings, "max_weight"))
        .stop(Stop::from_name(&named("stop")).unwrap())
        .consensus(get(settings, "consensus"))
        .min_ballots(get(settings, "min_ballots"))
        .calibrate_on(Calibrate::from_name(&named("calibrate_on")).unwrap())
        .percentile_over(Over::from_name(&named("percentile_over")).unwrap())
        .stopped_vote(get(settings, "stopped_vote"))
}

#[derive(Deserialize)]
struct Recording {
    interleave: bool,
    lag: usize,
    traces: Vec<Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
    confidences: Vec<f32>,
    end: String,
    answer: Option<String>,
    partial: Option<String>,
}

#[derive(Deserialize)]
struct Case {
    recording: String,
    preset: String,
    settings: Map<String, Value>,
    expected: Expected,
}

#[derive(Deserialize)]
struct Expected {
    #[serde(flatten)]
    vote: Ballots,
    voters: Vec<u32>,
    reason: String,
    stops: Vec<(u32, u64)>,
    statuses: Vec<String>,
    num_tokens: u64,
}

struct Flight {
    trace: u32,
    given: usize,
    stop: Option<usize>,
}

/// Plays a recording as `presets.json` says.
struct Player<'a> {
    controller: Controller,
    recording: &'a Recording,
    flights: Vec<Flight>,
    outcome: Option<Outcome>,
    stops: Vec<(u32, u64)>,
}

impl Player<'_> {
    fn play(&mut self) {
        let actions = self.controller.start().unwrap();
        self.obey(actions);
        let mut turn = 0;
        while !self.flights.is_empty() {
            turn %= self.flights.len();
            let flight = &mut self.flights[turn];
            let recorded = &self.recording.traces[flight.trace as usize];
            let confidences = &recorded.confidences;
            if let Some(&c) = confidences.get(flight.given) {
                flight.given += 1;
                let action = self.controller.tokens(flight.trace, &[c]).unwrap();
                if let Some(Action::Stop { trace, token }) = action {
                    assert_eq!(trace, flight.trace);
                    self.stops.push((trace, token));
                    flight.stop = Some(token as usize);
                }
            }
            let enough = flight.stop.is_some_and(|at| flight.given == at + 1 + self.recording.lag);
            if flight.given == confidences.len() || enough {
                let Flight { trace, stop, .. } = self.flights.remove(turn);
                let actions = match (stop, recorded.end.as_str()) {
                    (Some(_), _) => self.controller.finished(
                        trace,
                        Finish::Aborted,
                        recorded.partial.as_deref(),
                    ),
                    (_, "finished") => {
                        self.controller.finished(trace, Finish::End, recorded.answer.as_deref())
                    }
                    (_, "length") => {
                        self.controller.finished(trace, Finish::Length, recorded.answer.as_deref())
                    }
                    (_, "failed") => self.controller.failed(trace),
                    (_, end) => panic!("end {end:?}"),
                };
                self.obey(actions.unwrap());
            } else if self.recording.interleave {
                turn += 1;
            }
        }
        self.stops.sort_unstable();
    }

    fn obey(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Launch(traces) => {
                    for trace in traces {
                        self.controller.launched(trace).unwrap();
                        self.flights.push(Flight { trace, given: 0, stop: None });
                    }
                }
                Action::Answer(outcome) => self.outcome = Some(*outcome),
                Action::Abort(_) => {}
                other => panic!("{other:?} from something other than tokens"),
            }
        }
        if self.outcome.is_some() {
            for Flight { trace, .. } in self.flights.drain(..) {
                let after = self.controller.finished(trace, Finish::Aborted, None).unwrap();
                assert!(after.is_empty(), "{after:?} after the answer");
            }
        }
    }
}

fn check(name: &str, player: &Player<'_>, expected: &Expected) {
    let outcome = player.outcome.as_ref().expect("the run is over");
    let vote = &expected.vote;
    assert_eq!(outcome.answer, vote.answer, "{name}");
    assert_eq!(outcome.voters, expected.voters, "{name}");
    assert_eq!(outcome.reason.name(), expected.reason, "{name}");
    assert_eq!(player.stops, expected.stops, "{name}");
    alike(name, outcome.threshold.unwrap_or(f64::NAN), vote.threshold, 1e-12);
    assert_eq!(
        (outcome.vote.fallback, outcome.vote.num_voters),
        (vote.fallback, vote.num_voters),
        "{name}"
    );
    alike(name, outcome.vote.share, Some(vote.share), 1e-12);
    assert_eq!(outcome.answers.len(), vote.ballots.len(), "{name}");
    for ((got, answer), want) in
        outcome.vote.ballots.iter().zip(&outcome.answers).zip(&vote.ballots)
    {
        assert_eq!((answer, got.voters), (&want.0, want.2), "{name}");
        alike(name, got.weight, Some(want.1), 1e-12);
    }
    let status = |trace| player.controller.status(trace).map(|status| status.name().to_owned());
    let statuses: Vec<String> = (0..).map_while(status).collect();
    assert_eq!(statuses, expected.statuses, "{name}");
    assert_eq!(player.controller.num_tokens(), expected.num_tokens, "{name}");
}

#[derive(Deserialize)]
struct Presets {
    presets: BTreeMap<String, Value>,
    recordings: BTreeMap<String, Recording>,
}

#[test]
fn every_setting_of_every_preset() {
    let Presets { presets, .. } = read("presets.json");
    let mut known = Preset::NAMES.to_vec();
    known.sort_unstable();
    assert_eq!(presets.keys().collect::<Vec<_>>(), known);
    for (name, settings) in presets {
        let policy = Policy::preset(&name).unwrap();
        assert_eq!(as_json(&policy), settings, "{name}");
        assert_eq!(from_json(&settings), policy, "{name}");
    }
}

#[test]
fn every_preset_on_every_recording() {
    let Presets { presets, recordings } = read("presets.json");
    let cases = cases::<Case>("presets.json", "runs");
    for name in presets.keys() {
        for recording in recordings.keys() {
            let of = |case: &&Case| &case.preset == name && &case.recording == recording;
            assert!(cases.iter().any(|case| of(&case)), "no run of {name} on {recording}");
        }
    }
    for Case { recording, preset, settings, expected } in cases {
        let mut all = as_json(&Policy::preset(&preset).unwrap());
        for (name, value) in &settings {
            all[name] = value.clone();
        }
        let name = format!("{recording}, {preset}, {settings:?}");
        let mut player = Player {
            controller: Controller::new(from_json(&all)).unwrap(),
            recording: &recordings[&recording],
            flights: Vec::new(),
            outcome: None,
            stops: Vec::new(),
        };
        player.play();
        check(&name, &player, &expected);
    }
}
