//! Progress: something that moves on a terminal, plain lines elsewhere, nothing when quiet.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const TICK: Duration = Duration::from_millis(120);

pub(crate) struct Progress {
    bar: ProgressBar,
    /// Lines go past the bar where there is one.
    lively: bool,
    quiet: bool,
}

impl Progress {
    pub(crate) fn bytes(what: &str, total: Option<u64>, lively: bool, quiet: bool) -> Self {
        let template = match total {
            Some(_) => "{msg} {bar:28} {bytes} of {total_bytes} {bytes_per_sec} {eta}",
            None => "{spinner} {msg} {bytes} {bytes_per_sec}",
        };
        let progress = Self::new(total, template, lively, quiet);
        progress.bar.set_message(what.to_owned());
        progress
    }

    /// Of `total` things, one after the other.
    pub(crate) fn count(what: &str, total: u64, lively: bool, quiet: bool) -> Self {
        let template = "{msg} {bar:28} {pos} of {len} {elapsed}";
        let progress = Self::new(Some(total), template, lively, quiet);
        progress.bar.set_message(what.to_owned());
        progress
    }

    pub(crate) fn words(lively: bool, quiet: bool) -> Self {
        Self::new(None, "{spinner} {wide_msg}", lively, quiet)
    }

    fn new(total: Option<u64>, template: &str, lively: bool, quiet: bool) -> Self {
        let target = if lively {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(total, target);
        bar.set_style(ProgressStyle::with_template(template).expect("the templates are literals"));
        if lively {
            bar.enable_steady_tick(TICK);
        }
        Self { bar, lively, quiet }
    }

    pub(crate) fn advance(&self, by: u64) {
        self.bar.inc(by);
    }

    /// Some were done that were not foreseen.
    pub(crate) fn grow(&self, by: u64) {
        self.bar.inc_length(by);
        self.bar.inc(by);
    }

    /// So many bytes in all, by now.
    pub(crate) fn at(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// What goes on now: shown only where it can be replaced.
    pub(crate) fn status(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    /// Something that happened: stays on the screen.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        if self.quiet {
            return;
        }
        if self.lively {
            self.bar.println(text);
        } else {
            anstream::eprintln!("{}", text.as_ref());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
