//! The bar on standard error, on a terminal only.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Common;

/// A bar that counts tokens, or one that draws nothing.
pub fn bar(common: &Common, what: &'static str, num_tokens: u64) -> ProgressBar {
    if common.quiet || common.json || !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(num_tokens), ProgressDrawTarget::hidden());
    }
    // indicatif's colours (the console crate) honour NO_COLOR and CLICOLOR; the template has none anyway.
    let template = "{msg} {wide_bar} {human_pos} of {human_len} tokens, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(num_tokens).with_style(style).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}
