//! Measures the core beside this machine's own limit, and checks every answer against an oracle.
//!
//! `cargo run --release -p deepconf-bench` prints, for each kernel, the median of several runs with
//! their spread, in tokens a second or nanoseconds a token, and the share of the read-only ceiling.

mod oracle;
mod traces;

use std::hint::black_box;
use std::time::Instant;

use deepconf_core::group::{BatchScorer, StreamSettings, TraceScorer};
use deepconf_core::token::Table;
use deepconf_core::trace::{self, Settings};
use deepconf_core::vote::{self, Rules};

const RUNS: usize = 7;

/// Seconds of each run, sorted.
fn time(mut work: impl FnMut()) -> [f64; RUNS] {
    work();
    let mut seconds = [0.0; RUNS];
    for slot in &mut seconds {
        let start = Instant::now();
        work();
        *slot = start.elapsed().as_secs_f64();
    }
    seconds.sort_by(f64::total_cmp);
    seconds
}

struct Row<'a> {
    name: &'a str,
    /// How many tokens (or rows) a run handles.
    items: usize,
    /// How many bytes it reads.
    bytes: usize,
}

fn row(name: &str, items: usize, bytes: usize) -> Row<'_> {
    Row { name, items, bytes }
}

impl Row<'_> {
    /// Measures and prints a row; returns bytes a second.
    fn measure(&self, ceiling: Option<f64>, work: impl FnMut()) -> f64 {
        let seconds = time(work);
        let median = seconds[RUNS / 2];
        let spread = 100.0 * (seconds[RUNS - 1] - seconds[0]) / median;
        let (items, bytes) = (self.items as f64 / median, self.bytes as f64 / median);
        let share = ceiling.map_or(String::new(), |most| format!("{:6.1} %", 100.0 * bytes / most));
        println!(
            "{:<44}{:>10.1} M/s{:>9.2} ns{:>9.2} GB/s {share:>9}   ±{:.0} %",
            self.name,
            items / 1e6,
            1e9 / items,
            bytes / 1e9,
            spread / 2.0
        );
        bytes
    }
}

/// What a memory-bound kernel cannot beat: read float32 and add it up.
fn read_only(values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<64>();
    let mut lanes = [0.0_f32; 64];
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    match rayon::ThreadPoolBuilder::new().num_threads(threads).build() {
        Ok(pool) => pool.install(work),
        Err(error) => panic!("no pool of {threads} threads: {error}"),
    }
}

fn main() {
    const LENGTH: usize = 32_768;
    const TRACES: usize = 2_048;
    let settings = Settings::default();
    let values = traces::confidences(TRACES * LENGTH, 7);
    let offsets: Vec<i64> = (0..=TRACES).map(|i| (i * LENGTH) as i64).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let tokens = values.len();
    println!("{cores} cores; {TRACES} traces of {LENGTH} tokens, window {}\n", settings.window);

    let ceiling = row("read-only sum, 1 core (the ceiling)", tokens, 4 * tokens)
        .measure(None, || _ = black_box(read_only(black_box(&values))));

    let scored = trace::score_many(&values, &offsets, &settings).expect("the traces are sound");
    for i in (0..TRACES).step_by(TRACES / 4) {
        oracle::check(&values[i * LENGTH..(i + 1) * LENGTH], &settings, &scored[i]);
    }
    for threads in [1, cores] {
        on_threads(threads, || {
            row(&format!("all scores, threads: {threads}"), tokens, 4 * tokens).measure(
                Some(ceiling),
                || {
                    let again = trace::score_many(&values, &offsets, &settings);
                    assert!(again.as_ref() == Ok(&scored), "threads change the scores");
                },
            );
        });
    }

    for window in [64, 2_048, 65_536] {
        let stream = StreamSettings {
            window,
            tail: window,
            bottom: None,
            threshold: Some(0.1),
            ..StreamSettings::default()
        };
        let expected = {
            let settings = Settings { window, tail: window, ..settings };
            trace::score(&values, &settings).expect("the values are sound").lowest_group
        };
        row(&format!("streaming push, window {window}"), tokens, 4 * tokens).measure(None, || {
            let mut scorer = TraceScorer::new(stream).expect("the settings are sound");
            for &c in &values {
                assert!(!scorer.push(f64::from(c)).expect("the values are sound"));
            }
            assert!(scorer.lowest_group() == expected, "streaming and batch disagree");
        });
    }

    let slots: Vec<i64> = (0..256).collect();
    let mut stop = vec![false; slots.len()];
    let stream = StreamSettings { threshold: Some(0.1), ..StreamSettings::default() };
    let mut batch = BatchScorer::new(slots.len(), stream).expect("the settings are sound");
    row("BatchScorer.step, 256 slots", tokens, 4 * tokens).measure(None, || {
        for step in values.chunks_exact(slots.len()) {
            batch.step(&slots, step, &mut stop).expect("the values are sound");
            assert!(!stop.contains(&true));
        }
    });

    let k = 20;
    let logprobs = traces::logprobs(1 << 20, k, 11);
    let rows = logprobs.len() / k;
    let table = Table::new(&logprobs, k).expect("whole rows");
    oracle::check_confidences(&logprobs, k, &table.confidence(None).expect("finite"));
    on_threads(1, || {
        row("token confidence, k = 20, 1 core", rows, 4 * logprobs.len())
            .measure(Some(ceiling), || _ = black_box(table.confidence(None)));
    });

    let (questions, answers, weights) = traces::ballots(1_000_000, 10_000, 13);
    let rules = Rules { weights: Some(&weights), keep: 0.5, ..Rules::default() };
    let votes = vote::vote_many(&questions, &answers, &rules).expect("the columns are sound");
    oracle::check_votes(&questions, &answers, &weights, rules.keep, &votes);
    row("vote_many, 10,000 questions, keep 0.5", answers.len(), 0)
        .measure(None, || _ = black_box(vote::vote_many(&questions, &answers, &rules)));
}
