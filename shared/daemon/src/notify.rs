//! systemd's `sd_notify` protocol; does nothing where `NOTIFY_SOCKET` is not set.

use sd_notify::NotifyState;
use tracing::debug;

/// The daemon can do its work.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// The daemon's main loop still turns. Called from that loop, not from a timer of its own.
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "systemd was not notified");
    }
}
