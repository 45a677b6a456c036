//! Measures the core beside this machine's own limit, and checks every answer against an oracle.
//!
//! `cargo run --release -p deepconf-bench` takes under a minute. Every number is the median of several
//! runs; the percentage is the share of what reading the same bytes takes right before each.

mod measure;
mod tokens;

use std::hint::black_box;

use clap::Parser;
use deepconf_bench::limit::{self, Memory};
use deepconf_bench::{oracle, replay, traces};
use deepconf_core::policy::Policy;
use deepconf_core::replay::{Ended, Pool, Row};
use deepconf_core::trace::{Scorer, Settings};
use deepconf_core::vote::{self, Rules};
use deepconf_core::{Level, Sample};
use half::f16;
use measure::{Bench, Work};

/// Measures deepconf's core on this machine.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Millions of tokens in the largest set of traces: more than the caches hold.
    #[arg(long, default_value_t = 64)]
    millions: usize,
    /// MiB that the limit, and what is compared with it, is read from: more than any cache holds.
    #[arg(long, default_value_t = 1_024)]
    memory: usize,
    /// Only with this instruction set: baseline, avx2 or avx512. By default token kernels take all that the
    /// CPU has, one after the other, and all else the widest.
    #[arg(long)]
    level: Option<Level>,
    /// Only the sections whose title holds this.
    #[arg(long)]
    only: Option<String>,
}

type Section = (&'static str, fn(&mut Bench<'_>, &[f32]));

const SECTIONS: [Section; 11] = [
    ("this machine", machine),
    ("all five scores, n = 32,768, w = 2,048", scores),
    ("scores by length (w = 512 where none is given)", by_length),
    ("scores by window, bottom fraction and number of traces (n = 32,768)", by_setting),
    ("scores by type of float (n = 32,768, w = 2,048)", by_type),
    ("streaming", streaming),
    ("token confidence, one core, of the limit on bytes read and written", tokens::confidence),
    ("token entropy, one core, of the limit on bytes read and written", tokens::entropy),
    ("token confidence from logits, one core", tokens::logits),
    ("vote_many, weighted, keep 0.5", votes),
    ("a run of 128 traces of 16,384 tokens under `low`, one core", replays),
];

fn main() {
    let arguments = Arguments::parse();
    let data = traces::confidences(arguments.millions * (1 << 20), 7);
    let memory = Memory::new(vec![1.0; arguments.memory << 18]);
    let levels = arguments.level.map_or_else(|| Level::available().collect(), |level| vec![level]);
    let mut bench = Bench::new(&memory, levels, arguments.json);
    for (title, run) in SECTIONS {
        if arguments.only.as_ref().is_none_or(|only| title.contains(only.as_str())) {
            bench.section(title);
            run(&mut bench, &data);
        }
    }
    if arguments.json {
        let rows = bench.into_rows();
        println!("{}", serde_json::to_string_pretty(&rows).expect("rows are plain values"));
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn work(name: impl Into<String>, unit: &'static str, items: usize, bytes: usize) -> Work {
    Work { name: name.into(), unit, items, bytes, threads: 1 }
}

fn machine(bench: &mut Bench<'_>, data: &[f32]) {
    let (memory, bytes) = (bench.memory(), 4 * data.len());
    bench.row(work("read float32 and add it up, one core", "tokens", data.len(), bytes), || {
        black_box(limit::read(black_box(memory.next(data.len()))));
    });
    let all = Work { threads: cores(), ..work("the same, all cores", "tokens", data.len(), bytes) };
    bench.row(all, || _ = black_box(limit::read_in_parallel(black_box(memory.next(data.len())))));
    let mut to = vec![0.0; data.len()];
    bench.row(work("copy, one core", "tokens", data.len(), bytes), || {
        limit::copy(black_box(memory.next(data.len())), black_box(&mut to));
    });
}

/// Scores `values` cut into traces of `length`, once checked and then measured, each time elsewhere in
/// memory.
fn score<T: Sample>(
    bench: &mut Bench<'_>,
    name: String,
    values: &[T],
    length: usize,
    settings: Settings,
    threads: usize,
) {
    let memory = Memory::repeated(values, bench.memory().bytes());
    let scorer = Scorer::new(settings).expect("the settings are sound").at(bench.level());
    let offsets: Vec<usize> = (0..=values.len() / length).map(|i| i * length).collect();
    let scored = scorer.score_many(values, &offsets).expect("the traces are sound");
    let step = (scored.len() / 2).max(1);
    for (i, scores) in scored.iter().enumerate().step_by(step) {
        oracle::check(&values[i * length..(i + 1) * length], &settings, scores);
    }
    let n = scored.len() * length;
    let bytes = n * size_of::<T>();
    bench.row(Work { threads, ..work(name, "tokens", n, bytes) }, || {
        let again = scorer.score_many(memory.next(values.len()), &offsets);
        assert!(again.as_ref() == Ok(&scored), "the scores differ from run to run");
    });
}

fn scores(bench: &mut Bench<'_>, data: &[f32]) {
    for threads in 1..=cores() {
        let name = format!("{threads} of {} cores", cores());
        score(bench, name, data, 32_768, Settings::default(), threads);
    }
}

fn by_length(bench: &mut Bench<'_>, data: &[f32]) {
    let settings = Settings::default().window(512).tail(512);
    for length in [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18] {
        score(bench, format!("n = {length}"), &data[..data.len() / 4], length, settings, 1);
    }
    for (length, window) in [(64, 16), (2_088, 2_048)] {
        let (name, quarter) = (format!("n = {length}, w = {window}"), &data[..data.len() / 4]);
        score(bench, name, quarter, length, Settings::default().window(window).tail(window), 1);
    }
}

fn by_setting(bench: &mut Bench<'_>, data: &[f32]) {
    let quarter = &data[..data.len() / 4];
    for window in [16, 128, 2_048, 16_384] {
        let settings = Settings::default().window(window).tail(window);
        score(bench, format!("w = {window}"), quarter, 32_768, settings, 1);
    }
    for bottom in [0.01, 0.1, 0.5, 1.0] {
        let settings = Settings::default().bottom(bottom);
        score(bench, format!("q = {bottom}"), quarter, 32_768, settings, 1);
    }
    for count in [1, 16, 256] {
        let name = format!("traces: {count}");
        score(bench, name, &data[..count * 32_768], 32_768, Settings::default(), 1);
    }
}

fn by_type(bench: &mut Bench<'_>, data: &[f32]) {
    let quarter = &data[..data.len() / 4];
    let halves: Vec<f16> = quarter.iter().map(|&c| f16::from_f32(c)).collect();
    let doubles: Vec<f64> = quarter.iter().map(|&c| f64::from(c)).collect();
    score(bench, "float16".into(), &halves, 32_768, Settings::default(), 1);
    score(bench, "float32".into(), quarter, 32_768, Settings::default(), 1);
    score(bench, "float64".into(), &doubles, 32_768, Settings::default(), 1);
}

fn streaming(bench: &mut Bench<'_>, data: &[f32]) {
    let data = &data[..data.len() / 8];
    let threshold = Some(0.1);
    for window in [64, 2_048, 65_536] {
        let settings = Settings::default().window(window).tail(window).bottom(None);
        let scorer = Scorer::new(settings).expect("the settings are sound");
        let expected = scorer.score(data).expect("the values are sound").lowest_group;
        let fresh = || scorer.stream(threshold).expect("the threshold is finite");
        bench.row(
            work(format!("TraceScorer::push, w = {window}"), "tokens", data.len(), 0),
            || {
                let mut trace = fresh();
                for &c in data {
                    assert!(!trace.push(f64::from(c)).expect("the values are sound"));
                }
                assert!(trace.lowest_group() == expected, "streaming and batch disagree");
            },
        );
        let name = format!("TraceScorer::extend by 1,000, w = {window}");
        bench.row(work(name, "tokens", data.len(), 0), || {
            let mut trace = fresh();
            for part in data.chunks(1_000) {
                assert!(trace.extend(part).expect("the values are sound").is_none());
            }
            assert!(trace.lowest_group() == expected, "streaming and batch disagree");
        });
    }
    let scorer = Scorer::new(Settings::default()).expect("the settings are sound");
    for slots in [16, 256, 4_096] {
        let ids: Vec<usize> = (0..slots).collect();
        let (mut stop, steps) = (vec![false; slots], data.len() / slots);
        let first: Vec<f32> = data.iter().step_by(slots).take(steps).copied().collect();
        let expected = scorer.score(&first).expect("the values are sound").lowest_group;
        let name = format!("BatchScorer::step, slots: {slots}");
        bench.row(work(name, "tokens", steps * slots, 0), || {
            let mut batch = scorer.batch(slots, threshold).expect("there is room");
            for step in data.chunks_exact(slots) {
                batch.step(&ids, step, &mut stop).expect("the values are sound");
                assert!(!stop.contains(&true));
            }
            let lowest = batch.lowest_groups().next();
            assert!(lowest == Some(expected), "a slot and its trace disagree");
        });
    }
}

fn replays(bench: &mut Bench<'_>, data: &[f32]) {
    const TRACES: usize = 128;
    let values: Vec<&[f32]> = data.chunks_exact(16_384).take(TRACES).collect();
    let answers = [0, 1, 2, 0, 3].into_iter().cycle().take(TRACES).collect::<Vec<u32>>();
    let names: Vec<String> = answers.iter().map(u32::to_string).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let policy = Policy::preset("low").expect("it is one").budget(TRACES as u32);
    let row = |(trace, &answer): (i64, &u32)| Row {
        question: 0,
        trace,
        answer: Some(answer),
        ended: Ended::ByItself,
    };
    let rows: Vec<Row> = (0..).zip(&answers).map(row).collect();
    let read = || {
        let mut pool = Pool::new(std::slice::from_ref(&policy)).expect("the policy is sound");
        pool.add(&rows, &values).expect("the traces are sound");
        pool.close().expect("the numbers differ");
        pool
    };
    let all = values.iter().map(|trace| trace.len()).sum();
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    bench.row(work("Pool::add, once for all policies", "tokens", all, 4 * all), || {
        black_box(one.install(read));
    });
    let (pool, draw) = (read(), (0..TRACES as u32).collect::<Vec<_>>());
    let expected = replay::drive(&policy, &values, &names).expect("the traces are sound");
    let generated = expected.0 as usize;
    bench.row(work("Pool::run, 100 times", "tokens", 100 * generated, 0), || {
        for _ in 0..100 {
            let run = pool.run(0, &policy, &draw, 0).expect("the draw fits");
            assert!((run.tokens, run.steps) == expected, "replay and controller disagree");
        }
    });
    bench.row(work("the controller token by token", "tokens", generated, 0), || {
        assert!(replay::drive(&policy, &values, &names) == Ok(expected));
    });
}

fn votes(bench: &mut Bench<'_>, _: &[f32]) {
    for (rows, number) in [(1_000_000, 10_000), (10_000_000, 100_000)] {
        let (questions, answers, weights) = traces::ballots(rows, number, 13);
        let rules = Rules::default().weights(Some(&weights)).keep(0.5);
        let votes = vote::vote_many(&questions, &answers, &rules).expect("the columns are sound");
        oracle::check_votes(&questions, &answers, &weights, rules.keep, &votes);
        for threads in [1, cores()] {
            let name = format!("{rows} rows, {number} questions, threads: {threads}");
            bench.row(Work { threads, ..work(name, "rows", rows, 0) }, || {
                let again = vote::vote_many(&questions, &answers, &rules);
                assert!(again.as_ref() == Ok(&votes), "the winners differ from run to run");
            });
        }
    }
}
