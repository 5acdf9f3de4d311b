//! The one clock of a gateway: time since it started.

use std::time::Duration;

use shared::units::MonoTime;
use tokio::time::Instant;

/// Tokio's clock, so that tests can pause it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> MonoTime {
        MonoTime::from(self.origin.elapsed())
    }

    /// The moment as tokio's timers take it.
    pub(crate) fn instant(&self, at: MonoTime) -> Instant {
        // A moment centuries ahead is as good as a day ahead: nothing here waits that long.
        let ahead = at
            .since_origin()
            .min(Duration::from_secs(u64::from(u32::MAX)));
        self.origin + ahead
    }
}
