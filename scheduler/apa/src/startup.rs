//! How long a served entity's replicas take from being placed to being ready: what the hold before
//! a scale-down is measured in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Share of the newest start in the average: three starts in, a change of image or model has made
/// up two thirds of it, and one unlucky start does not.
const NEWEST_SHARE: f64 = 0.3;

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StartupTime {
    seconds: Option<f64>,
}

impl StartupTime {
    pub fn record(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.seconds = Some(match self.seconds {
            None => took,
            Some(before) => before + NEWEST_SHARE * (took - before),
        });
    }

    /// `None` before the first start.
    pub fn get(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.seconds?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_new_starts_without_jumping_to_one() {
        let mut startup = StartupTime::default();
        assert_eq!(startup.get(), None);
        startup.record(Duration::from_secs(10));
        assert_eq!(startup.get(), Some(Duration::from_secs(10)));
        startup.record(Duration::from_secs(20));
        assert_eq!(startup.get(), Some(Duration::from_secs(13)));
    }
}
