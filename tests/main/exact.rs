use maxhull::engine::cpu::exact::{DocF64, Solver, Status, Stop};
use maxhull::{Scoring, TokenData};
#[test]
fn smoke() {
    let x = [1.0f32, 0.0, 0.0, 1.0, 0.5, 0.5, 0.2, 0.3, 0.9, 0.9];
    let doc = DocF64::from_tokens(TokenData::F32(&x), 2);
    let all = [0, 1, 2, 3, 4];
    let mut s = Solver::new();
    for i in 0..5 {
        for sc in [Scoring::Plain, Scoring::Clamped] {
            println!("{i} {sc} {:?}", s.project(&doc, i, &all, sc, Stop::Gap { relative: 1e-12, absolute: 1e-14 }, None));
        }
    }
    panic!();
}
