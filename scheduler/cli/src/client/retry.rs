//! How long to wait before the next try.

use std::time::Duration;

use rand::RngExt as _;

/// A number of tries with doubling waits; each wait is drawn from its upper half, so that many
/// clients of one server that came back do not come at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
    pub(crate) retries: u32,
}

impl Backoff {
    /// For a connection that was not made: some two seconds, a scheduler's restart.
    pub(crate) const CONNECT: Backoff = Backoff {
        first: Duration::from_millis(150),
        longest: Duration::from_secs(1),
        retries: 3,
    };

    /// The wait before retry `n` (from 0 on); `None` when the budget is spent.
    pub(crate) fn wait(&self, n: u32, rng: &mut impl rand::Rng) -> Option<Duration> {
        if n >= self.retries {
            return None;
        }
        let full = self.first.saturating_mul(1 << n.min(16)).min(self.longest);
        Some(full.mul_f64(rng.random_range(0.5..=1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_end_with_the_budget() {
        let backoff = Backoff {
            first: Duration::from_millis(100),
            longest: Duration::from_millis(300),
            retries: 4,
        };
        let mut rng = rand::rng();
        for (n, full) in [100, 200, 300, 300].into_iter().enumerate() {
            let wait = backoff.wait(n as u32, &mut rng).expect("in the budget");
            assert!(
                (full / 2..=full).contains(&(wait.as_millis() as u64)),
                "{wait:?}"
            );
        }
        assert_eq!(backoff.wait(4, &mut rng), None);
    }
}
