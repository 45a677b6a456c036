//! Criterion benches, for whoever works on a kernel: `cargo bench -p deepconf-bench`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use deepconf_bench::traces;
use deepconf_core::token::Table;
use deepconf_core::trace::{Scorer, Settings};
use deepconf_core::vote::{self, Rules};

fn scores(criterion: &mut Criterion) {
    let values = traces::confidences(32_768, 7);
    let mut group = criterion.benchmark_group("score");
    group.throughput(Throughput::Elements(values.len() as u64));
    for window in [16, 2_048] {
        let scorer =
            Scorer::new(Settings::default().window(window)).expect("the settings are sound");
        group.bench_function(format!("w = {window}"), |bench| {
            bench.iter(|| scorer.score(black_box(&values)));
        });
    }
    group.finish();
}

fn streaming(criterion: &mut Criterion) {
    let values = traces::confidences(32_768, 7);
    let scorer = Scorer::new(Settings::default().bottom(None)).expect("the settings are sound");
    let mut trace = scorer.stream(None).expect("there is no threshold");
    let mut group = criterion.benchmark_group("stream");
    group.throughput(Throughput::Elements(values.len() as u64));
    group.bench_function("extend", |bench| bench.iter(|| trace.extend(black_box(&values))));
    group.finish();
}

fn tokens(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("token confidence");
    let logprobs = traces::logprobs(4_096, 20, 11);
    let table = Table::new(&logprobs, 20).expect("whole rows");
    group.throughput(Throughput::Elements(4_096));
    group.bench_function("k = 20", |bench| bench.iter(|| black_box(table).confidence(None)));
    let logits = traces::logits(8, 128_256, 17);
    let table = Table::new(&logits, 128_256).expect("whole rows");
    group.throughput(Throughput::Elements(8));
    group.bench_function("logits", |bench| {
        bench.iter(|| black_box(table).logits_confidence(20, None));
    });
    group.finish();
}

fn votes(criterion: &mut Criterion) {
    let (questions, answers, weights) = traces::ballots(100_000, 1_000, 13);
    let rules = Rules::default().weights(Some(&weights)).keep(0.5);
    let mut group = criterion.benchmark_group("vote");
    group.throughput(Throughput::Elements(100_000));
    group.bench_function("vote_many", |bench| {
        bench.iter(|| vote::vote_many(black_box(&questions), black_box(&answers), &rules));
    });
    group.finish();
}

criterion_group!(kernels, scores, streaming, tokens, votes);
criterion_main!(kernels);
