//! The CPU engine.

pub(crate) mod document;
pub(crate) mod dominance;
pub mod exact;
pub(crate) mod face;
pub(crate) mod gram;
pub(crate) mod products;
pub mod rational;
pub(crate) mod selection;
pub(crate) mod simd;
mod witness;

/// Temporary profile entry.
#[doc(hidden)]
pub fn profile_select(batch: &crate::TokenBatch, eps: f32, scoring: crate::Scoring) -> (usize, usize) {
    use simd::{Isa, Kernel, Lanes};
    struct Run<'a>(
        &'a mut document::Document,
        &'a mut products::GramProducts,
        &'a mut selection::Selector,
        crate::TokenData<'a>,
        usize,
        f32,
        crate::Scoring,
        bool,
    );
    impl Kernel for Run<'_> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            self.0.load(self.3, self.4, self.6);
            self.1.fill::<L>(&self.0.tokens, self.4);
            if self.7 {
                return;
            }
            let e = self.5 * self.0.scale;
            let inside = if self.5 > 0.0 { e * e - dominance::ROUNDING } else { -1.0 };
            let goal = selection::Goal { inside, max_kept: usize::MAX };
            self.2.run::<L, _>(self.1, self.0.n, self.6, &[self.0.longest], goal);
        }
    }
    let isa = Isa::detect();
    let mut d = document::Document::new();
    let mut p = products::GramProducts::new();
    let mut s = selection::Selector::new();
    let (mut kept, mut sup) = (0, 0);
    for doc in 0..batch.num_docs() {
        isa.run(Run(&mut d, &mut p, &mut s, batch.doc(doc), batch.dim(), eps, scoring, eps > 5.0));
        if eps > 5.0 {
            continue;
        }
        kept += s.order().len();
        for &t in s.removed() {
            sup += s.support(t).0.len();
        }
    }
    (kept, sup)
}
