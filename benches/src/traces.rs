//! Data like what reasoning leaves behind: confidence that wanders, with dips.

/// A small generator (splitmix64): the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// `n` token confidences, nats: a slow wave, noise, and runs of low values.
#[must_use]
pub fn confidences(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let (mut level, mut dip) = (14.0_f64, 0.0_f64);
    (0..n)
        .map(|_| {
            level += 0.02 * (14.0 - level) + 0.5 * (random.unit() - 0.5);
            dip = if random.unit() < 1e-3 { 6.0 } else { dip * 0.99 };
            (level - dip + 8.0 * (random.unit() - 0.5)).clamp(3.0, 30.0) as f32
        })
        .collect()
}

/// `n` rows of `k` falling log-probabilities, nats.
#[must_use]
pub fn logprobs(n: usize, k: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let mut values = Vec::with_capacity(n * k);
    for _ in 0..n {
        let mut l = -0.01 - random.unit();
        for _ in 0..k {
            values.push(l as f32);
            l -= 2.0 * random.unit();
        }
    }
    values
}

/// `n` rows of logits as large as the vocabulary, a few of them far above the rest.
#[must_use]
pub fn logits(n: usize, vocabulary: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let mut logit = || {
        let likely = if random.unit() < 5e-4 { 20.0 * random.unit() } else { 0.0 };
        (likely + 8.0 * (random.unit() - 0.5)) as f32
    };
    (0..n * vocabulary).map(|_| logit()).collect()
}

/// Columns of votes: question, answer and weight of each row, in random order.
#[must_use]
pub fn ballots(rows: usize, questions: u64, seed: u64) -> (Vec<u64>, Vec<Option<u64>>, Vec<f64>) {
    let mut random = Random(seed);
    let mut columns = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rows {
        columns.0.push(random.next() % questions);
        columns.1.push((random.unit() < 0.95).then(|| random.next() % 7));
        columns.2.push(random.unit() * 20.0);
    }
    columns
}
