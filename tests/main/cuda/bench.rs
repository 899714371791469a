//! What `maxhull bench` runs, small: its answers, not its numbers.

use std::sync::Arc;

use maxhull::bench::{Options, run};

use super::open;

fn check(name: &str) {
    let Some(device) = open().map(Arc::new) else { return };
    let options = Options { is_quick: true, names: vec![name.into()], ..Options::default() };
    let mut num_rows = 0;
    let (ceilings, _) = run(&device, &options, &mut |row| num_rows += row.map(|_| 1).unwrap()).unwrap();
    assert!(num_rows > 0 && ceilings.matrix.is_some());
}

#[test]
fn on_device_ceilings_are_right() {
    check("maxsim_sum");
}

#[test]
fn on_device_rows_of_maxsim_are_right() {
    check("maxsim");
}
