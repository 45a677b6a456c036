//! What a policy would have done with recorded traces: the controller's own decisions, without the
//! tokens.
//!
//! A [`Pool`] takes in whole traces once and keeps of each its scores, its
//! [staircase](crate::staircase), its answer and how it ended. From these a run follows under any policy:
//! the threshold says where each trace stops, and a [`Controller`] that is told so decides the rest, as
//! it does live.
//!
//! ```
//! use deepconf_core::controller::Reason;
//! use deepconf_core::policy::Policy;
//! use deepconf_core::replay::{Ended, Pool, Row};
//!
//! let high = Policy::preset("high")?;
//! let policy = Policy { budget: 3, warmup: 2, window: 2, keep: 1.0, min_ballots: 1, ..high };
//! let mut pool = Pool::new(std::slice::from_ref(&policy))?;
//! let row = |trace, answer| Row { question: 0, trace, answer, ended: Ended::ByItself };
//! let rows = [row(0, Some(0)), row(1, Some(1)), row(2, Some(0))];
//! pool.add(&rows, &[&[9.0_f32, 8.0], &[9.0, 9.0, 9.0], &[7.0, 3.0, 9.0, 9.0]])?;
//! pool.close()?;
//!
//! let run = pool.run(0, &policy, &[0, 1, 2], 0)?;
//! assert_eq!((run.answer, run.reason), (Some(1), Reason::Budget)); // 9.0 weighs more than 8.5
//! assert_eq!((run.stopped, run.tokens, run.steps), (1, 7, 5)); // trace 2 stops after two tokens
//! # Ok::<(), deepconf_core::Error>(())
//! ```
//!
//! **Time** is counted in steps; every running trace generates one token a step. A trace launched at the
//! end of step u (0 for the start) has its first token in step u + 1, and ends in the step of its last
//! one; a trace without tokens in step u + 1. Within a step, first the new tokens are scored, and a stop
//! takes effect at its token. Then the traces that have ended are reported in launch order, one that was
//! stopped without an answer, and what the controller says is obeyed at once: a launch begins with the
//! next step, an abort leaves its traces the tokens they have. Once the answer is given, nothing more is
//! reported.
//!
//! **Cost.** Of [`add`](Pool::add): the scores, once for each group of policies that differ in `window`,
//! `tail`, `bottom` or `decimals`, and 12 bytes a step of the staircases. Of [`run`](Pool::run): for each
//! trace launched a binary search, its place in a heap, and a few events; and the votes that may settle
//! the run. With `stop="certain"`, besides, a look at each trace whenever one ends; where an offline
//! filter may reach a consensus, a vote: milliseconds a run of 512 traces, a second of 4,096.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::controller::{Action, Controller, Finish, Outcome, Reason};
use crate::error::{Error, Result};
use crate::parallel;
use crate::policy::{Mode, Policy, Stop, Weight};
use crate::staircase::{Lows, Staircase};
use crate::token::Sample;
use crate::trace::{self, Scores, Settings};

/// How a recorded trace ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    ByItself,
    /// At the length limit.
    AtTheLimit,
}

/// What is known of a recorded trace besides its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The question it answers, counted from 0.
    pub question: u32,
    /// Its number, by which the traces of a question are in launch order.
    pub trace: i64,
    /// Its answer's number: equal ones are the same answer. `None` for none.
    pub answer: Option<u32>,
    /// How it ended.
    pub ended: Ended,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The number of the answer that won; `None` when nobody voted.
    pub answer: Option<u32>,
    /// All tokens that were generated, `lag` included.
    pub tokens: u64,
    /// The step in which the answer was given.
    pub steps: u64,
    /// Traces launched.
    pub launched: u32,
    /// Those that ran to their end, by themselves or at the length limit.
    pub finished: u32,
    /// Those stopped below the threshold.
    pub stopped: u32,
    /// Those aborted once the answer was known.
    pub aborted: u32,
    /// s, or the score that an offline filter asked for.
    pub threshold: Option<f64>,
    /// Whether the filter left too few voters and was given up.
    pub fallback: bool,
    /// Why the run ended.
    pub reason: Reason,
    /// Online: whether nothing could have been stopped.
    pub unarmed: bool,
}

/// What a trace was scored with, and what for.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lens {
    settings: Settings,
    /// Whether its staircase is kept.
    stairs: bool,
}

/// The traces of one question as one lens shows them.
#[derive(Clone, Debug, Default)]
struct View {
    scores: Vec<Scores>,
    lows: Staircase,
    /// Where the lows of each trace end.
    ends: Vec<usize>,
}

impl View {
    fn push(&mut self, (scores, lows): (Scores, Staircase)) {
        self.scores.push(scores);
        self.lows.append(lows);
        self.ends.push(self.lows.len());
    }

    fn lows(&self, row: usize) -> Lows<'_> {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.lows.of(start..self.ends[row])
    }
}

#[derive(Clone, Debug, Default)]
struct Question {
    rows: Vec<Row>,
    /// A view for each lens.
    views: Vec<View>,
    /// Rows in launch order.
    order: Vec<u32>,
}

/// Recorded traces, as far as a replay needs them.
#[derive(Clone, Debug)]
pub struct Pool {
    lenses: Vec<Lens>,
    questions: Vec<Question>,
    closed: bool,
    /// The names under which the controller is told of answers.
    names: Vec<String>,
}

impl Pool {
    /// A pool on which these policies, and all that score as they do, can be replayed.
    ///
    /// # Errors
    /// As [`Policy::check`].
    pub fn new(policies: &[Policy]) -> Result<Self> {
        let mut lenses: Vec<Lens> = Vec::new();
        let mut want = |settings: Settings, stairs: bool| match lenses
            .iter_mut()
            .find(|lens| lens.settings == settings)
        {
            Some(lens) => lens.stairs |= stairs,
            None => lenses.push(Lens { settings, stairs }),
        };
        for policy in policies {
            policy.check()?;
            want(policy.settings(), false);
            if needs_stairs(policy) {
                // What stops a trace is not rounded.
                want(Settings { decimals: None, ..policy.settings() }, true);
            }
        }
        Ok(Self { lenses, questions: Vec::new(), closed: false, names: Vec::new() })
    }

    /// Takes in traces, in parallel: `traces[i]` holds the token confidences, in nats, of `rows[i]`.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Setting`] once the pool is closed; as
    /// [`trace::score_with_lows`], the trace counted from the first of these rows. None of them is then
    /// taken in.
    pub fn add<T: Sample>(&mut self, rows: &[Row], traces: &[&[T]]) -> Result<()> {
        if rows.len() != traces.len() {
            let (left_len, right_len) = (rows.len(), traces.len());
            return Err(Error::Length { left: "rows", left_len, right: "traces", right_len });
        }
        if self.closed {
            return Err(Error::setting("rows", rows.len(), "the pool is closed"));
        }
        type Seen = Vec<(Scores, Staircase)>;
        let seen: Vec<Seen> = parallel::try_map(traces.len(), |at| {
            let through = |lens: &Lens| lens.look(traces[at]).map_err(|error| error.of_trace(at));
            self.lenses.iter().map(through).collect()
        })?;
        for (row, seen) in rows.iter().zip(seen) {
            let question = row.question as usize;
            if self.questions.len() <= question {
                let views = vec![View::default(); self.lenses.len()];
                let empty = Question { views, ..Question::default() };
                self.questions.resize(question + 1, empty);
            }
            let question = &mut self.questions[question];
            question.rows.push(*row);
            question.views.iter_mut().zip(seen).for_each(|(view, seen)| view.push(seen));
        }
        Ok(())
    }

    /// Puts the traces of each question into launch order; nothing can be added any more.
    ///
    /// # Errors
    /// [`Error::Setting`] where two traces of a question have the same number.
    pub fn close(&mut self) -> Result<()> {
        let mut most = 0;
        for (number, question) in self.questions.iter_mut().enumerate() {
            let rows = &question.rows;
            question.order = (0..rows.len() as u32).collect();
            question.order.sort_by_key(|&row| rows[row as usize].trace);
            let number_of = |row: u32| rows[row as usize].trace;
            let twice =
                question.order.windows(2).find(|pair| number_of(pair[0]) == number_of(pair[1]));
            if let Some(&[first, _]) = twice {
                let expected = format!("question {number} has two traces of this number");
                return Err(Error::setting("trace", number_of(first), expected));
            }
            let answers = rows.iter().filter_map(|row| row.answer);
            most = answers.map(|answer| answer + 1).fold(most, u32::max);
        }
        self.closed = true;
        self.names = (0..most).map(|answer| answer.to_string()).collect();
        Ok(())
    }

    /// How many traces a question has.
    #[must_use]
    pub fn num_traces(&self, question: usize) -> usize {
        self.questions.get(question).map_or(0, |question| question.rows.len())
    }

    /// How many record lows are kept, 12 bytes each.
    #[must_use]
    pub fn num_lows(&self) -> usize {
        self.questions.iter().flat_map(|q| &q.views).map(|view| view.lows.len()).sum()
    }

    /// One run: its trace i is the question's `draw[i]`-th in launch order. For each trace stopped or
    /// aborted, `lag` tokens more are counted.
    ///
    /// # Errors
    /// As [`Policy::check`]; [`Error::Setting`] when the pool was not made for such a policy, has no
    /// such question or is not closed, or the draw is shorter than the budget or leaves the pool.
    pub fn run(&self, question: usize, policy: &Policy, draw: &[u32], lag: u64) -> Result<Run> {
        let eyes = self.eyes(question, policy)?;
        check_draw(eyes.question, policy, draw)?;
        Replayer::new(&eyes, &self.names, policy, draw)?.run(lag)
    }

    /// Many runs, in parallel: each policy on each draw, all draws of the first policy first.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_all(
        &self,
        question: usize,
        policies: &[Policy],
        draws: &[&[u32]],
        lag: u64,
    ) -> Result<Vec<Run>> {
        let mut eyes = Vec::with_capacity(policies.len());
        for policy in policies {
            let of_policy = self.eyes(question, policy)?;
            draws.iter().try_for_each(|draw| check_draw(of_policy.question, policy, draw))?;
            eyes.push(of_policy);
        }
        // The draws outside: one draw's traces stay in the cache for all policies.
        let by_draw: Vec<Vec<Run>> = parallel::try_map(draws.len(), |at| {
            let run =
                |(policy, eyes)| Replayer::new(eyes, &self.names, policy, draws[at])?.run(lag);
            policies.iter().zip(&eyes).map(run).collect()
        })?;
        let mut by_draw: Vec<_> = by_draw.into_iter().map(Vec::into_iter).collect();
        let mut runs = Vec::with_capacity(policies.len() * draws.len());
        for _ in policies {
            runs.extend(by_draw.iter_mut().filter_map(Iterator::next));
        }
        Ok(runs)
    }

    /// What a policy sees of a question.
    fn eyes(&self, question: usize, policy: &Policy) -> Result<Eyes<'_>> {
        policy.check()?;
        let Some(traces) = self.questions.get(question) else {
            let expected = format!("there are {}", self.questions.len());
            return Err(Error::setting("question", question, expected));
        };
        if !self.closed {
            return Err(Error::setting("question", question, "close the pool first"));
        }
        let settings = policy.settings();
        let view = |settings: Settings, stairs: bool| {
            let fits = |lens: &Lens| lens.settings == settings && (lens.stairs || !stairs);
            self.lenses.iter().position(fits).map(|at| &traces.views[at]).ok_or_else(|| {
                let Settings { window, tail, bottom, decimals } = settings;
                let decimals = decimals.map_or(String::new(), |d| format!(", decimals={d}"));
                let value = format!("window={window}, tail={tail}, bottom={bottom}{decimals}");
                Error::setting("policy", value, "the pool was not read for these: read it again")
            })
        };
        let scores = &view(settings, false)?.scores;
        let stairs = needs_stairs(policy)
            .then(|| view(Settings { decimals: None, ..settings }, true))
            .transpose()?;
        Ok(Eyes { question: traces, scores, stairs })
    }
}

impl Lens {
    fn look<T: Sample>(&self, values: &[T]) -> Result<(Scores, Staircase)> {
        let mut lows = Staircase::default();
        let scores = if self.stairs {
            trace::score_with_lows(values, &self.settings, &mut lows)
        } else {
            trace::score(values, &self.settings)
        };
        Ok((scores?, lows))
    }
}

/// Whether lowest groups are asked for before a trace has ended: for its stop, or for what it can still
/// weigh.
fn needs_stairs(policy: &Policy) -> bool {
    policy.mode == Mode::Online || is_bounded_by_lows(policy)
}

fn is_bounded_by_lows(policy: &Policy) -> bool {
    policy.stop == Stop::Certain && policy.weight == Weight::LowestGroup
}

fn check_draw(question: &Question, policy: &Policy, draw: &[u32]) -> Result<()> {
    let most = question.rows.len();
    if draw.len() < policy.budget as usize {
        let expected = format!("the draw has only {} traces", draw.len());
        return Err(Error::setting("budget", policy.budget, expected));
    }
    match draw.iter().find(|&&trace| trace as usize >= most) {
        Some(trace) => Err(Error::setting("draw", trace, format!("there are {most} traces"))),
        None => Ok(()),
    }
}

/// What a policy sees of a question.
struct Eyes<'a> {
    question: &'a Question,
    scores: &'a [Scores],
    /// Where the staircases are, if they are looked at.
    stairs: Option<&'a View>,
}

/// A trace that runs.
#[derive(Clone, Copy)]
struct Flight {
    row: usize,
    /// The step at the end of which it was launched.
    begun: u64,
    /// Tokens that it generates when it is not aborted.
    tokens: u64,
    stop: Option<u64>,
    over: bool,
}

struct Replayer<'a> {
    eyes: &'a Eyes<'a>,
    names: &'a [String],
    draw: &'a [u32],
    policy: &'a Policy,
    controller: Controller,
    flights: Vec<Flight>,
    /// The step in which each running trace ends, and its number.
    ends: BinaryHeap<Reverse<(u64, u32)>>,
    step: u64,
    /// The most tokens that the controller knows a trace to have.
    longest: u64,
    /// Where the run stands: tokens of those that are over.
    tokens: u64,
    stopped: u32,
    aborted: u32,
    outcome: Option<Box<Outcome>>,
}

impl<'a> Replayer<'a> {
    fn new(
        eyes: &'a Eyes<'a>,
        names: &'a [String],
        policy: &'a Policy,
        draw: &'a [u32],
    ) -> Result<Self> {
        Ok(Self {
            eyes,
            names,
            draw,
            policy,
            controller: Controller::new(policy.clone())?,
            flights: Vec::with_capacity(policy.budget as usize),
            ends: BinaryHeap::with_capacity(policy.budget as usize),
            step: 0,
            longest: 0,
            tokens: 0,
            stopped: 0,
            aborted: 0,
            outcome: None,
        })
    }

    fn run(mut self, lag: u64) -> Result<Run> {
        let first = self.controller.start()?;
        self.obey(first)?;
        let mut ending = Vec::new();
        while let Some(&Reverse((step, _))) = self.ends.peek() {
            self.step = step;
            ending.clear();
            while let Some(&Reverse((end, trace))) = self.ends.peek()
                && end == step
            {
                self.ends.pop();
                ending.push(trace);
            }
            self.score(&ending)?;
            for &trace in &ending {
                let flight = &mut self.flights[trace as usize];
                flight.over = true;
                self.tokens += flight.tokens;
                self.stopped += u32::from(flight.stop.is_some());
            }
            for &trace in &ending {
                if self.outcome.is_none() {
                    let ended = self.end(trace)?;
                    self.obey(ended)?;
                } else if self.flights[trace as usize].stop.is_none() {
                    // It ended in the step of the answer, and nobody was told.
                    self.aborted += 1;
                }
            }
            if self.outcome.is_some() {
                break;
            }
        }
        let launched = self.flights.len() as u32;
        let cut = self.stopped + self.aborted;
        let Some(outcome) = &self.outcome else {
            return Err(Error::setting("draw", launched, "the run came to no end"));
        };
        let first = outcome.vote.winner().map(|ballot| ballot.first);
        Ok(Run {
            answer: first.and_then(|trace| self.row(trace).answer),
            tokens: self.tokens + lag * u64::from(cut),
            steps: self.step,
            launched,
            finished: launched - cut,
            stopped: self.stopped,
            aborted: self.aborted,
            threshold: outcome.threshold,
            fallback: outcome.vote.fallback,
            reason: outcome.reason,
            unarmed: outcome.unarmed.is_some(),
        })
    }

    fn row(&self, trace: usize) -> &Row {
        &self.eyes.question.rows[self.flights[trace].row]
    }

    fn obey(&mut self, actions: Vec<Action>) -> Result<()> {
        for action in actions {
            match action {
                Action::Launch(traces) => {
                    traces.into_iter().try_for_each(|trace| self.launch(trace))?;
                }
                Action::Abort(traces) => {
                    for trace in traces {
                        let flight = &mut self.flights[trace as usize];
                        if !flight.over {
                            flight.over = true;
                            self.tokens += self.step - flight.begun;
                            self.aborted += 1;
                        }
                    }
                }
                Action::Answer(outcome) => self.outcome = Some(outcome),
                Action::Stop { .. } => {}
            }
        }
        Ok(())
    }

    fn launch(&mut self, trace: u32) -> Result<()> {
        let row = self.eyes.question.order[self.draw[trace as usize] as usize] as usize;
        let threshold = self.controller.threshold().filter(|_| trace >= self.policy.warmup);
        let stop = match (threshold, self.eyes.stairs) {
            (Some(s), Some(stairs)) => stairs.lows(row).first_below(s),
            _ => None,
        };
        let tokens = stop.map_or(self.eyes.scores[row].num_tokens, |token| token + 1);
        self.controller.launched(trace)?;
        self.flights.push(Flight { row, begun: self.step, tokens, stop, over: false });
        self.ends.push(Reverse((self.step + tokens.max(1), trace)));
        Ok(())
    }

    /// Tells the controller what the tokens up to this step came to, as far as it will ask.
    fn score(&mut self, ending: &[u32]) -> Result<()> {
        for &trace in ending {
            let Flight { row, tokens, stop, .. } = self.flights[trace as usize];
            let scores = match stop {
                None => self.eyes.scores[row],
                Some(_) => self.part(row, tokens),
            };
            self.controller.scored(trace, scores, tokens, stop)?;
            self.longest = self.longest.max(tokens);
        }
        let bounded = is_bounded_by_lows(self.policy);
        // Only a window that no trace has reached yet leaves open whether the signal was armed.
        if self.eyes.stairs.is_none() || !(bounded || self.longest < self.policy.window) {
            return Ok(());
        }
        for trace in 0..self.flights.len() {
            let Flight { row, begun, tokens, .. } = self.flights[trace];
            let seen = self.step - begun;
            if seen < self.policy.window || seen >= tokens {
                continue;
            }
            let scores = self.part(row, seen);
            self.controller.scored(trace as u32, scores, seen, None)?;
            self.longest = self.longest.max(seen);
            if !bounded {
                break;
            }
        }
        Ok(())
    }

    /// What is known of a trace after its first `tokens` tokens.
    fn part(&self, row: usize, tokens: u64) -> Scores {
        let lows = self.eyes.stairs.map(|stairs| stairs.lows(row));
        let lowest_group = lows.and_then(|lows| lows.lowest_after(tokens)).unwrap_or(f64::NAN);
        Scores { lowest_group, num_tokens: tokens, ..Scores::NOTHING }
    }

    fn end(&mut self, trace: u32) -> Result<Vec<Action>> {
        let stopped = self.flights[trace as usize].stop.is_some();
        let &Row { answer, ended, .. } = self.row(trace as usize);
        let finish = match ended {
            Ended::ByItself => Finish::End,
            Ended::AtTheLimit => Finish::Length,
        };
        let answer = answer.filter(|_| !stopped).map(|answer| &*self.names[answer as usize]);
        self.controller.finished(trace, finish, answer)
    }
}
