//! Threads are started by what says so, and by nothing else. A test of its own, in a process of its own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use deepconf_core::vote::{Integers, Rules, vote, vote_column, vote_columns};

fn num_threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn one_vote_starts_no_thread() {
    let numbers: Vec<i64> = (0..200_000).collect();
    let scores: Vec<f64> = numbers.iter().map(|&number| number as f64).collect();
    let rules = Rules::default().keep(0.5).scores(Some(&scores)).weights(Some(&scores));
    let before = num_threads();
    let answers: Vec<_> = numbers.iter().map(|number| Some(number % 7)).collect();
    vote(&answers, &rules).unwrap();
    vote_column(&Integers(&numbers), &rules).unwrap();
    assert_eq!(num_threads(), before);
    vote_columns(&Integers(&numbers), &Integers(&numbers), &rules).unwrap();
    assert_eq!(num_threads() > before, cfg!(feature = "rayon"));
}
