//! What the kernel needs from an instruction set.

/// A register of 32-bit lanes and the arithmetic of one encoding of components into words.
///
/// Implementations are zero-sized; methods are `#[inline(always)]` so that they take on the instruction set of the
/// entry point they are inlined into.
pub(crate) trait Lanes {
    /// Lanes in a register.
    const LANES: usize;
    /// Most rows of a block: `MAX_ROWS x 2` accumulators, two query registers and a broadcast must fit. At most 12.
    const MAX_ROWS: usize;
    /// Whether similarities are integer sums to be multiplied by [`Lanes::scale`].
    const SCALED: bool = false;
    /// Whether [`Lanes::widen`] is there: the kernel then converts the next rows while it multiplies these.
    const WIDENS: bool = false;
    /// The register.
    type Register: Copy;
    /// Which lanes have seen a NaN.
    type Flags: Copy;

    /// `LANES` words.
    ///
    /// # Safety
    /// `ptr` must be valid for `LANES` words and aligned to the register.
    unsafe fn load(ptr: *const u32) -> Self::Register;
    /// The reverse of [`Lanes::load`].
    ///
    /// # Safety
    /// As [`Lanes::load`].
    unsafe fn store(ptr: *mut u32, value: Self::Register);
    /// One word in every lane.
    ///
    /// # Safety
    /// `ptr` must be valid for four bytes, at any alignment.
    unsafe fn splat(ptr: *const u8) -> Self::Register;
    /// `sum + q . x` for the components in a word.
    ///
    /// # Safety
    /// The CPU must have the instruction set; so for all methods.
    unsafe fn mul_add(sum: Self::Register, q: Self::Register, x: Self::Register) -> Self::Register;
    /// The similarity of an integer sum: `sum as f32 * scale`.
    ///
    /// # Safety
    /// As [`Lanes::mul_add`].
    unsafe fn scale(sum: Self::Register, scale: f32) -> Self::Register {
        let _ = scale;
        sum
    }
    /// `LANES` f16 values at `from` as f32 at `to`.
    ///
    /// # Safety
    /// `from` must be valid for `2 * LANES` bytes, at any alignment; `to` as in [`Lanes::store`].
    unsafe fn widen(from: *const u8, to: *mut u32) {
        let _ = (from, to);
    }
    /// The larger lane; `best` where either is NaN.
    ///
    /// # Safety
    /// As [`Lanes::mul_add`].
    unsafe fn max(value: Self::Register, best: Self::Register) -> Self::Register;
    /// `token` in the lanes where `value > best`, otherwise `matched`.
    ///
    /// # Safety
    /// As [`Lanes::mul_add`].
    unsafe fn select_greater(
        value: Self::Register,
        best: Self::Register,
        token: u32,
        matched: Self::Register,
    ) -> Self::Register;
    /// No lane has seen a NaN.
    fn no_flags() -> Self::Flags;
    /// Adds the lanes where `a` or `b` is NaN.
    ///
    /// # Safety
    /// As [`Lanes::mul_add`].
    unsafe fn flag_nan(flags: Self::Flags, a: Self::Register, b: Self::Register) -> Self::Flags;
    /// NaN in the flagged lanes, otherwise `best`.
    ///
    /// # Safety
    /// As [`Lanes::mul_add`].
    unsafe fn poison(best: Self::Register, flags: Self::Flags) -> Self::Register;
}
