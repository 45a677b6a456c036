//! Rows of log-probabilities and of logits, at each instruction set.

use std::hint::black_box;

use deepconf_bench::limit::Memory;
use deepconf_bench::{oracle, traces};
use deepconf_core::Result;
use deepconf_core::token::Table;

use crate::measure::Bench;
use crate::work;

/// Numbers of log-probabilities: usual ones, one more, primes, and around fours.
const KS: [usize; 13] = [2, 3, 5, 7, 8, 10, 11, 16, 20, 21, 32, 50, 64];

/// Entries of a table, and tables that are scored in a run, each elsewhere in memory.
const ENTRIES: usize = 1 << 23;
const TABLES: usize = 4;

pub fn confidence(bench: &mut Bench<'_>, _: &[f32]) {
    by_k(bench, &[None, Some(-100.0)], oracle::check_confidences, |table, floor, scores| {
        table.confidence_into(floor, scores)
    });
}

pub fn entropy(bench: &mut Bench<'_>, _: &[f32]) {
    by_k(bench, &[None], oracle::check_entropies, |table, floor, scores| {
        table.entropy_into(floor, scores)
    });
}

fn by_k(
    bench: &mut Bench<'_>,
    floors: &[Option<f64>],
    check: fn(&[f32], usize, &[f32]),
    score: impl Fn(Table<'_, f32>, Option<f64>, &mut [f32]) -> Result<()> + Sync,
) {
    let memory = Memory::repeated(&traces::logprobs(1 << 16, 20, 11), bench.memory().bytes());
    let mut scores = vec![0.0; ENTRIES / KS[0]];
    for (k, &floor) in KS.into_iter().flat_map(|k| floors.iter().map(move |floor| (k, floor))) {
        let rows = ENTRIES / k;
        let scores = &mut scores[..rows];
        for level in bench.levels() {
            let scored = |scores: &mut [f32]| {
                let values = memory.next(rows * k);
                let table = Table::new(values, k).expect("whole rows").at(level);
                score(table, floor, black_box(scores)).expect("finite");
                values
            };
            check(scored(scores), k, scores);
            let floor = if floor.is_some() { ", with a floor" } else { "" };
            let name = format!("k = {k}{floor}, {level}");
            let work = work(name, "tokens", TABLES * rows, 4 * TABLES * rows * (k + 1));
            bench.row(work, || (0..TABLES).for_each(|_| _ = scored(scores)));
        }
    }
}

pub fn logits(bench: &mut Bench<'_>, _: &[f32]) {
    let memory = Memory::repeated(&traces::logits(1, 1 << 22, 17), bench.memory().bytes());
    for vocabulary in [32_000, 128_256, 256_000] {
        let rows = 4 * ENTRIES / vocabulary;
        for level in bench.levels() {
            let scored = || {
                let values = memory.next(rows * vocabulary);
                let table = Table::new(values, vocabulary).expect("whole rows").at(level);
                (values, table.logits_confidence(20, None).expect("finite"))
            };
            let (values, scores) = scored();
            oracle::check_logits(values, vocabulary, 20, &scores);
            let name = format!("vocabulary of {vocabulary}, k = 20, {level}");
            let work = work(name, "tokens", rows, 4 * rows * vocabulary);
            bench.row(work, || _ = black_box(scored()));
        }
    }
}
