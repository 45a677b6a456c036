//! The sums of all groups of a trace, without a chain of dependent additions.
//!
//! A running sum, `S[i+1] = S[i] + q[i+w] − q[i]`, waits for itself at every token. Here eight of
//! them run side by side, eight apart:
//!
//! ```text
//! A[i]   = q[i] + q[i+1] + … + q[i+7]            an octet, by three doublings: 1, 2, 4, 8 tokens
//! S[i+8] = S[i] + A[i+w] − A[i]                  lane j holds S[j], S[j+8], S[j+16], …
//! ```
//!
//! The order of additions is another one, but sums are integers ([`crate::fixed`]), so the result is
//! the same to the last bit.
//!
//! Sums are not kept. For each block of 128 groups there are the lanes at its start, from which
//! [`Groups::read`] makes its sums again, and its smallest and largest sum, from which
//! [`crate::bottom`] sees that most blocks need no second look.
//!
//! **Cost.** A token is read once from memory, in chunks that stay in the first-level cache: one
//! conversion, one rounding addition, three additions for the octet, two for the sum, a minimum and a
//! maximum, all in vectors. Scratch memory is 8 bytes a token, used again for the next trace.

use crate::fixed::BIAS;
use crate::token::Sample;

/// Running sums side by side.
const LANES: usize = 8;

/// Groups in a block.
pub(crate) const BLOCK: usize = 128;

/// Tokens that are quantised at once.
const CHUNK: usize = 256;

/// The sums of a block, and the lanes that come next.
pub(crate) const SUMS: usize = BLOCK + LANES;

/// The smallest and the largest sum of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) min: i64,
    pub(crate) max: i64,
}

/// What was seen on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<M> {
    /// The sum of all tokens, in quanta.
    pub(crate) total: i128,
    /// The largest magnitude, NaN and infinities on top: all else is void where it is too large.
    pub(crate) largest: M,
}

/// The groups of one trace; the memory is used again for the next.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    window: usize,
    len: usize,
    /// A[i], with a bias of its own that cancels in differences.
    octets: Vec<i64>,
    /// The lanes at the start of each block.
    starts: Vec<[i64; LANES]>,
    blocks: Vec<Block>,
}

impl Groups {
    /// Sums up every group of `values`, `[n]`, n ≥ `window`.
    ///
    /// `biased` gives a token in quanta plus [`BIAS`], as [`crate::fixed::biased`] does.
    #[inline(always)]
    pub(crate) fn slide<T: Sample>(
        &mut self,
        values: &[T],
        window: usize,
        biased: impl Fn(T) -> i64 + Copy,
    ) -> Seen<T::Magnitude> {
        let n = values.len();
        self.window = window;
        self.len = n - window + 1;
        self.starts.clear();
        self.blocks.clear();
        // Enough for the last chunk, and for a block that reaches beyond the last group.
        let needed = n + CHUNK + BLOCK;
        if self.octets.len() < needed {
            self.octets.resize(needed, 0);
        }
        let mut sums = [0; SUMS];
        let lanes = first_lanes(values, window, self.len.min(LANES), biased);
        sums[BLOCK..].copy_from_slice(&lanes);
        let mut seen = Seen { total: 0, largest: T::Magnitude::default() };
        let mut buffers = [[0; CHUNK + LANES]; 2];
        for start in (0..n).step_by(CHUNK) {
            let end = start + CHUNK;
            let mut padded;
            let tokens: &[T; CHUNK + LANES - 1] = match values.get(start..end + LANES - 1) {
                Some(whole) => whole.try_into().expect("of that length"),
                None => {
                    padded = [T::default(); CHUNK + LANES - 1];
                    padded[..n - start].copy_from_slice(&values[start..]);
                    &padded
                }
            };
            let octets = (&mut self.octets[start..end]).try_into().expect("of that length");
            let (total, largest) = octets_of(tokens, biased, &mut buffers, octets);
            seen.total += i128::from(total);
            seen.largest = seen.largest.max(largest);
            while self.starts.len() < self.len / BLOCK
                && (self.starts.len() + 1) * BLOCK + window <= end
            {
                self.block(&mut sums);
            }
        }
        while self.starts.len() * BLOCK < self.len {
            self.block(&mut sums);
        }
        seen
    }

    /// Goes on by one block: `sums` ends with the lanes at its start, and then with those at its end.
    #[inline(always)]
    fn block(&mut self, sums: &mut [i64; SUMS]) {
        let block = self.starts.len();
        self.starts.push(sums[BLOCK..].try_into().expect("of that length"));
        let (mut min, mut max) = (i64::MAX, i64::MIN);
        for &sum in self.read(block, sums) {
            min = min.min(sum);
            max = max.max(sum);
        }
        self.blocks.push(Block { min, max });
    }

    /// The sums of a block, in quanta; the last may have fewer than [`BLOCK`].
    #[inline(always)]
    pub(crate) fn read<'a>(&self, block: usize, sums: &'a mut [i64; SUMS]) -> &'a [i64] {
        let at = |start: usize| -> &[i64; BLOCK] {
            (&self.octets[start..start + BLOCK]).try_into().expect("of that length")
        };
        let (entering, leaving) = (at(block * BLOCK + self.window), at(block * BLOCK));
        sums[..LANES].copy_from_slice(&self.starts[block]);
        for i in 0..BLOCK {
            let change = entering[i].wrapping_sub(leaving[i]);
            sums[i + LANES] = sums[i].wrapping_add(change);
        }
        &sums[..BLOCK.min(self.len - block * BLOCK)]
    }

    /// How many groups there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All blocks, each of [`BLOCK`] groups but perhaps the last.
    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }
}

/// S[0], …, S[count − 1]; 0 in the lanes beyond.
#[inline(always)]
fn first_lanes<T: Sample>(
    values: &[T],
    window: usize,
    count: usize,
    biased: impl Fn(T) -> i64 + Copy,
) -> [i64; LANES] {
    let mut lanes = [0; LANES];
    lanes[0] = sum(&values[..window], biased).total as i64;
    for j in 1..count {
        let change = biased(values[j - 1 + window]).wrapping_sub(biased(values[j - 1]));
        lanes[j] = lanes[j - 1].wrapping_add(change);
    }
    lanes
}

/// The octets of a chunk, the sum of its first [`CHUNK`] tokens, and the largest magnitude of all.
#[inline(always)]
fn octets_of<T: Sample>(
    tokens: &[T; CHUNK + LANES - 1],
    biased: impl Fn(T) -> i64,
    [ones, fours]: &mut [[i64; CHUNK + LANES]; 2],
    octets: &mut [i64; CHUNK],
) -> (i64, T::Magnitude) {
    let mut largest = T::Magnitude::default();
    for (one, &c) in ones.iter_mut().zip(tokens) {
        *one = biased(c);
        largest = largest.max(c.magnitude());
    }
    let mut total = 0_i64;
    for &one in &ones[..CHUNK] {
        total = total.wrapping_add(one);
    }
    for i in 0..CHUNK + 4 {
        let (left, right) =
            (ones[i].wrapping_add(ones[i + 1]), ones[i + 2].wrapping_add(ones[i + 3]));
        fours[i] = left.wrapping_add(right);
    }
    for i in 0..CHUNK {
        octets[i] = fours[i].wrapping_add(fours[i + 4]);
    }
    (total.wrapping_sub(BIAS.wrapping_mul(CHUNK as i64)), largest)
}

/// The sum of tokens in quanta, and the largest magnitude.
#[inline(always)]
pub(crate) fn sum<T: Sample>(values: &[T], biased: impl Fn(T) -> i64) -> Seen<T::Magnitude> {
    let mut seen = Seen { total: 0, largest: T::Magnitude::default() };
    for chunk in values.chunks(CHUNK) {
        let mut total = 0_i64;
        for &c in chunk {
            total = total.wrapping_add(biased(c).wrapping_sub(BIAS));
            seen.largest = seen.largest.max(c.magnitude());
        }
        seen.total += i128::from(total);
    }
    seen
}
