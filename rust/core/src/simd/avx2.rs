//! What [`Lanes`] are in AVX2 instructions.

use std::arch::x86_64::{__m256, __m256d, __m256i, _MM_HINT_T0};
use std::ops::Range;

use pulp::cast;
use pulp::x86::V3;

use super::{FOUR, Lanes, RUN, RUNS};

/// Bytes in a line of the cache.
const LINE: usize = 64;

impl Lanes for V3 {
    #[inline(always)]
    fn sums(self, runs: &[[i64; RUN]; RUNS]) -> [i64; RUNS] {
        let [a, b, c, d, e, f, g, h] = runs;
        let low =
            joined(self, [folded(self, a), folded(self, b), folded(self, c), folded(self, d)]);
        let high =
            joined(self, [folded(self, e), folded(self, f), folded(self, g), folded(self, h)]);
        cast([low, high])
    }

    #[inline(always)]
    fn moments(self, runs: &[[f32; RUN]; RUNS]) -> ([f32; RUNS], [f32; RUNS]) {
        let [a, b, c, d, e, f, g, h] = runs;
        macro_rules! each {
            ($of:ident) => {
                [
                    $of(self, a),
                    $of(self, b),
                    $of(self, c),
                    $of(self, d),
                    $of(self, e),
                    $of(self, f),
                    $of(self, g),
                    $of(self, h),
                ]
            };
        }
        (cast(gathered(self, each!(total))), cast(gathered(self, each!(square))))
    }

    #[inline(always)]
    fn joined(self, [a, b, c, d]: [[f64; FOUR]; FOUR]) -> [f64; FOUR] {
        let Self { avx, .. } = self;
        // Lanes 0 + 2 and 1 + 3 of two rows.
        let folded = |a: [f64; FOUR], b: [f64; FOUR]| {
            let (a, b): (__m256d, __m256d) = (cast(a), cast(b));
            avx._mm256_add_pd(
                avx._mm256_permute2f128_pd::<0x20>(a, b),
                avx._mm256_permute2f128_pd::<0x31>(a, b),
            )
        };
        cast(avx._mm256_hadd_pd(folded(a, c), folded(b, d)))
    }

    #[inline(always)]
    fn running(self, starts: [i64; 4], changes: &[[i64; RUN]; 4]) -> [[i64; 4]; RUN] {
        let mut rows = [[0; 4]; RUN];
        let mut sums: __m256i = cast(starts);
        for (i, rows) in rows.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let four = |lane: usize| changes[lane].as_chunks::<4>().0[i];
            let columns =
                transposed(self, [cast(four(0)), cast(four(1)), cast(four(2)), cast(four(3))]);
            for (row, column) in rows.iter_mut().zip(columns) {
                *row = cast(sums);
                sums = self.avx2._mm256_add_epi64(sums, column);
            }
        }
        rows
    }

    #[inline(always)]
    fn within(self, numbers: [i64; FOUR], range: Range<i64>, room: &mut [i64; FOUR]) -> usize {
        let Self { avx, avx2, .. } = self;
        let all: __m256i = cast(numbers);
        let is_below = avx2._mm256_cmpgt_epi64(avx._mm256_set1_epi64x(range.start), all);
        let is_before_end = avx2._mm256_cmpgt_epi64(avx._mm256_set1_epi64x(range.end), all);
        let is_within = avx2._mm256_andnot_si256(is_below, is_before_end);
        let bits = avx._mm256_movemask_pd(cast(is_within)) as usize % PACKED.len();
        *room = cast(avx2._mm256_permutevar8x32_epi32(all, cast(PACKED[bits])));
        bits.count_ones() as usize
    }

    #[inline(always)]
    fn prefetch<T>(self, values: &[T]) {
        let start = values.as_ptr().cast::<i8>();
        for line in 0..size_of_val(values).div_ceil(LINE) {
            self.sse._mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * LINE));
        }
    }
}

/// For each set of four lanes, which halves of lanes to take so that those in the set come first.
const PACKED: [[u32; 2 * FOUR]; 1 << FOUR] = {
    let mut packed = [[0; 2 * FOUR]; 1 << FOUR];
    let mut bits = 0;
    while bits < packed.len() {
        let (mut lane, mut at) = (0, 0);
        while lane < FOUR {
            if bits >> lane & 1 == 1 {
                packed[bits][at] = 2 * lane as u32;
                packed[bits][at + 1] = 2 * lane as u32 + 1;
                at += 2;
            }
            lane += 1;
        }
        bits += 1;
    }
    packed
};

/// A run in four lanes.
#[inline(always)]
fn folded(v3: V3, run: &[i64; RUN]) -> __m256i {
    let [a, b, c, d]: [__m256i; 4] = cast(*run);
    let add = |a, b| v3.avx2._mm256_add_epi64(a, b);
    add(add(a, b), add(c, d))
}

/// The sums of four vectors.
#[inline(always)]
fn joined(v3: V3, [a, b, c, d]: [__m256i; 4]) -> __m256i {
    let V3 { avx2, .. } = v3;
    let ab =
        avx2._mm256_add_epi64(avx2._mm256_unpacklo_epi64(a, b), avx2._mm256_unpackhi_epi64(a, b));
    let cd =
        avx2._mm256_add_epi64(avx2._mm256_unpacklo_epi64(c, d), avx2._mm256_unpackhi_epi64(c, d));
    avx2._mm256_add_epi64(
        avx2._mm256_permute2x128_si256::<0x20>(ab, cd),
        avx2._mm256_permute2x128_si256::<0x31>(ab, cd),
    )
}

#[inline(always)]
fn transposed(v3: V3, [a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let V3 { avx2, .. } = v3;
    let (ab, cd) = (avx2._mm256_unpacklo_epi64(a, b), avx2._mm256_unpacklo_epi64(c, d));
    let (ef, gh) = (avx2._mm256_unpackhi_epi64(a, b), avx2._mm256_unpackhi_epi64(c, d));
    [
        avx2._mm256_permute2x128_si256::<0x20>(ab, cd),
        avx2._mm256_permute2x128_si256::<0x20>(ef, gh),
        avx2._mm256_permute2x128_si256::<0x31>(ab, cd),
        avx2._mm256_permute2x128_si256::<0x31>(ef, gh),
    ]
}

/// A run in eight lanes.
#[inline(always)]
fn total(v3: V3, run: &[f32; RUN]) -> __m256 {
    let [a, b]: [__m256; 2] = cast(*run);
    v3.avx._mm256_add_ps(a, b)
}

/// The squares of a run in eight lanes.
#[inline(always)]
fn square(v3: V3, run: &[f32; RUN]) -> __m256 {
    let [a, b]: [__m256; 2] = cast(*run);
    v3.fma._mm256_fmadd_ps(a, a, v3.avx._mm256_mul_ps(b, b))
}

/// The sums of eight vectors.
#[inline(always)]
fn gathered(v3: V3, [a, b, c, d, e, f, g, h]: [__m256; 8]) -> __m256 {
    let V3 { avx, .. } = v3;
    let (ab, cd) = (avx._mm256_hadd_ps(a, b), avx._mm256_hadd_ps(c, d));
    let (ef, gh) = (avx._mm256_hadd_ps(e, f), avx._mm256_hadd_ps(g, h));
    let (low, high) = (avx._mm256_hadd_ps(ab, cd), avx._mm256_hadd_ps(ef, gh));
    avx._mm256_add_ps(
        avx._mm256_permute2f128_ps::<0x20>(low, high),
        avx._mm256_permute2f128_ps::<0x31>(low, high),
    )
}
