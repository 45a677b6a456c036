//! Timing: every row is measured several times, each time right after the limit on the same bytes.

use std::hint::black_box;
use std::time::Instant;

use deepconf_bench::limit::{self, Memory};
use deepconf_core::Level;
use serde::Serialize;

/// Runs a row is the median of.
const RUNS: usize = 5;

/// One line of the report.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What is measured, under which heading.
    pub section: String,
    /// The setting that varies.
    pub name: String,
    /// What an item is.
    pub unit: &'static str,
    /// Items of a run.
    pub items: usize,
    /// Bytes read in a run, and written where scores are many; 0 where that is not what bounds it.
    pub bytes: usize,
    /// Threads used.
    pub threads: usize,
    /// Seconds of a run, the median.
    pub seconds: f64,
    /// Half the distance from the fastest to the slowest run, as a part of the median.
    pub spread: f64,
    /// Speed as a part of reading the same number of bytes on as many threads: the median of ratios.
    pub of_limit: Option<f64>,
}

impl Row {
    /// Millions of items a second.
    #[must_use]
    pub fn millions(&self) -> f64 {
        self.items as f64 / self.seconds / 1e6
    }
}

/// Collects rows, and prints each as it is measured.
pub struct Bench<'a> {
    /// Read beside every row that is bound by memory.
    memory: &'a Memory<f32>,
    levels: Vec<Level>,
    rows: Vec<Row>,
    section: String,
    quiet: bool,
}

/// What a row is about.
pub struct Work {
    /// The setting that varies.
    pub name: String,
    /// What an item is.
    pub unit: &'static str,
    /// Items of a run.
    pub items: usize,
    /// Bytes read in a run, and written where scores are many; 0 where that is not what bounds it.
    pub bytes: usize,
    /// Threads used.
    pub threads: usize,
}

impl<'a> Bench<'a> {
    /// Without rows; the limit is read from `memory`, kernels run at `levels`, and `quiet` prints nothing.
    #[must_use]
    pub fn new(memory: &'a Memory<f32>, levels: Vec<Level>, quiet: bool) -> Self {
        Self { memory, levels, rows: Vec::new(), section: String::new(), quiet }
    }

    /// What the limit is read from.
    #[must_use]
    pub fn memory(&self) -> &'a Memory<f32> {
        self.memory
    }

    /// The instruction sets to compare.
    #[must_use]
    pub fn levels(&self) -> Vec<Level> {
        self.levels.clone()
    }

    /// The one to measure at what is not compared.
    #[must_use]
    pub fn level(&self) -> Level {
        self.levels.last().copied().unwrap_or_else(Level::widest)
    }

    /// Begins a section.
    pub fn section(&mut self, title: &str) {
        title.clone_into(&mut self.section);
        if !self.quiet {
            println!("\n{title}");
        }
    }

    /// Measures one row; `run` does the work once.
    pub fn row(&mut self, work: Work, mut run: impl FnMut() + Send) {
        let Work { name, unit, items, bytes, threads } = work;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.expect("threads can be started");
        pool.install(&mut run);
        let mut seconds = Vec::new();
        let mut ratios = Vec::new();
        for _ in 0..RUNS {
            let same = self.memory.next(bytes / 4);
            let limit =
                pool.install(|| timed(|| _ = black_box(limit::read_in_parallel(black_box(same)))));
            let taken = pool.install(|| timed(&mut run));
            seconds.push(taken);
            ratios.push(limit / taken);
        }
        let seconds = sorted(seconds);
        let median = seconds[RUNS / 2];
        let row = Row {
            section: self.section.clone(),
            name,
            unit,
            items,
            bytes,
            threads,
            seconds: median,
            spread: (seconds[RUNS - 1] - seconds[0]) / median / 2.0,
            of_limit: (bytes > 0).then(|| sorted(ratios)[RUNS / 2]),
        };
        if !self.quiet {
            print(&row);
        }
        self.rows.push(row);
    }

    /// All rows.
    #[must_use]
    pub fn into_rows(self) -> Vec<Row> {
        self.rows
    }
}

fn print(row: &Row) {
    let each = 1e9 * row.seconds / row.items as f64;
    let bandwidth = match row.bytes {
        0 => String::new(),
        bytes => format!("{:.2} GB/s", bytes as f64 / row.seconds / 1e9),
    };
    let of_limit = row.of_limit.map_or(String::new(), |part| format!("{:.0} %", 100.0 * part));
    let speed = format!("{:.1} M {}/s", row.millions(), row.unit);
    let (name, spread) = (&row.name, 100.0 * row.spread);
    println!("  {name:<44}{speed:>20}{each:>10.2} ns{bandwidth:>14}{of_limit:>8}   ±{spread:.0} %");
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}
