//! The widest vector instructions that the CPU has, picked at run time.
//!
//! The kernels are plain loops over fixed-size arrays, which the compiler turns into vector code.
//! [`widest`] compiles them once for the baseline, once for AVX2 and once for AVX-512 (on other
//! processors the baseline has what there is, such as NEON), and `pulp` picks among them safely. So
//! a wheel built for the baseline runs as fast as a native build, and no path has arithmetic of its
//! own.

/// Work to be compiled for several instruction sets: its `call` and what that calls must be
/// `#[inline(always)]`. (A closure is compiled once, for the baseline.)
pub(crate) use pulp::NullaryFnOnce as Work;

/// Runs `work` with the widest instructions there are.
#[inline]
pub(crate) fn widest<W: Work>(work: W) -> W::Output {
    pulp::Arch::new().dispatch(work)
}
