//! The bar on standard error, on a terminal only.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::args::Common;

/// A bar that counts tokens, or one that draws nothing.
pub fn bar(common: &Common, what: &'static str, num_tokens: u64) -> ProgressBar {
    if common.quiet || common.json || !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(num_tokens), ProgressDrawTarget::hidden());
    }
    // indicatif's colours (the console crate) honour NO_COLOR and CLICOLOR; the template has none anyway.
    let template = "{msg} {wide_bar} {human_pos} of {human_len} tokens, {rate}/s, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A bar that cannot be drawn is no reason to stop.
        let _ = write!(out, "{}", HumanCount(state.per_sec() as u64));
    });
    let bar = ProgressBar::new(num_tokens).with_style(style).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}
