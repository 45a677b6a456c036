//! What a kernel that is bound by memory cannot beat.

use rayon::prelude::*;

/// Reads float32 and adds it up, in more lanes than the adders need.
#[must_use]
pub fn read(values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<64>();
    let mut lanes = [0.0_f32; 64];
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// [`read`] on every thread of the current pool.
#[must_use]
pub fn read_in_parallel(values: &[f32]) -> f32 {
    values.par_chunks(1 << 18).map(read).sum()
}

/// Copies `values`.
pub fn copy(values: &[f32], to: &mut [f32]) {
    to.copy_from_slice(values);
}
