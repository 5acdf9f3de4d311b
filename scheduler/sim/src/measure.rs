//! What a run came to: the figures of the table, and series for plots.

use serde::Serialize;

/// One policy's figures, as the JSON output has them. The lead-in is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measures {
    pub policy: String,
    /// Seconds of replicas that hold a node's room: starting and draining ones too.
    pub replica_seconds: f64,
    pub mean_replicas: f64,
    pub max_replicas: u32,
    /// Share of the offered work that lay above the ready replicas' capacity at their best point.
    pub excess_share: f64,
    /// Time in the gateways' queue, over requests; those that still wait at the end count with what
    /// they have waited.
    pub wait_p50_s: f64,
    pub wait_p99_s: f64,
    /// Whole requests; what fractions a fluid has are rounded.
    pub rejected: u64,
    /// Seconds in which the number of wanted replicas was another than in the second before.
    pub changes: u32,
    /// `None`: the policy sets none.
    pub final_target_concurrency: Option<u32>,
    /// Of the policy's own computing, on this machine.
    pub decisions_per_s: f64,
}

/// Waits by size, in buckets that are 2 % wide.
#[derive(Clone, Debug)]
pub(crate) struct Waits {
    buckets: Vec<f64>,
    none: f64,
    total: f64,
}

/// Shorter ones are no waits.
const SHORTEST_S: f64 = 1e-3;
const GROWTH: f64 = 1.02;

impl Default for Waits {
    fn default() -> Self {
        Self {
            buckets: Vec::new(),
            none: 0.0,
            total: 0.0,
        }
    }
}

impl Waits {
    pub(crate) fn add(&mut self, requests: f64, wait_s: f64) {
        self.total += requests;
        if wait_s < SHORTEST_S {
            self.none += requests;
            return;
        }
        let bucket = ((wait_s / SHORTEST_S).ln() / GROWTH.ln()) as usize;
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0.0);
        }
        self.buckets[bucket] += requests;
    }

    /// The wait that this share of requests does not exceed; 0 without requests.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let wanted = share * self.total;
        let mut seen = self.none;
        if seen >= wanted {
            return 0.0;
        }
        for (bucket, requests) in self.buckets.iter().enumerate() {
            seen += requests;
            if seen >= wanted {
                return SHORTEST_S * GROWTH.powf(bucket as f64 + 0.5);
            }
        }
        // Rounding left a hair of the last bucket's requests.
        SHORTEST_S * GROWTH.powf(self.buckets.len() as f64 - 0.5)
    }
}

/// What plots are drawn from: a point for every `step_s` seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Series {
    pub step_s: u32,
    pub points: Vec<Point>,
}

/// Means over a point's seconds, unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    pub t_s: u32,
    /// Offered work, in requests at once.
    pub demand: f64,
    /// Of the ready replicas at their best point, in requests at once.
    pub capacity: f64,
    /// Replicas that are paid for.
    pub replicas: f64,
    pub ready: f64,
    pub desired: f64,
    /// The last one's; `None`: the policy sets none.
    pub target_concurrency: Option<u32>,
    pub queued: f64,
    pub rejected: f64,
    /// The longest in the gateways' queue of those that left it.
    pub wait_s: f64,
}

impl Series {
    pub(crate) fn new(length_s: u32, most_points: u32) -> Self {
        Self {
            step_s: length_s.div_ceil(most_points.max(1)).max(1),
            points: Vec::new(),
        }
    }

    /// Adds a second.
    pub(crate) fn add(&mut self, second: Point) {
        let step = f64::from(self.step_s);
        if second.t_s.is_multiple_of(self.step_s) {
            self.points.push(Point {
                t_s: second.t_s,
                ..Point::default()
            });
        }
        let Some(point) = self.points.last_mut() else {
            return;
        };
        for (mean, value) in [
            (&mut point.demand, second.demand),
            (&mut point.capacity, second.capacity),
            (&mut point.replicas, second.replicas),
            (&mut point.ready, second.ready),
            (&mut point.desired, second.desired),
            (&mut point.queued, second.queued),
            (&mut point.rejected, second.rejected),
        ] {
            *mean += value / step;
        }
        point.target_concurrency = second.target_concurrency;
        point.wait_s = point.wait_s.max(second.wait_s);
    }

    /// The last point may have had fewer seconds than the others.
    pub(crate) fn finish(&mut self, length_s: u32) {
        let Some(last) = self.points.last_mut() else {
            return;
        };
        let scale = f64::from(self.step_s) / f64::from((length_s - last.t_s).max(1));
        for mean in [
            &mut last.demand,
            &mut last.capacity,
            &mut last.replicas,
            &mut last.ready,
            &mut last.desired,
            &mut last.queued,
            &mut last.rejected,
        ] {
            *mean *= scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_weighted_by_requests_and_right_within_two_percent() {
        let mut waits = Waits::default();
        waits.add(60.0, 0.0);
        waits.add(30.0, 0.5);
        waits.add(10.0, 8.0);
        assert_eq!(waits.quantile(0.5), 0.0);
        assert!((waits.quantile(0.75) / 0.5 - 1.0).abs() < 0.02);
        assert!((waits.quantile(0.99) / 8.0 - 1.0).abs() < 0.02);
        assert_eq!(Waits::default().quantile(0.99), 0.0);
    }

    #[test]
    fn a_series_keeps_means_and_the_longest_wait_of_each_step() {
        let mut series = Series::new(5, 3);
        for t_s in 0..5 {
            series.add(Point {
                t_s,
                demand: f64::from(t_s),
                wait_s: f64::from(t_s),
                ..Point::default()
            });
        }
        series.finish(5);
        let told: Vec<(u32, f64, f64)> = series
            .points
            .iter()
            .map(|point| (point.t_s, point.demand, point.wait_s))
            .collect();
        assert_eq!(told, [(0, 0.5, 1.0), (2, 2.5, 3.0), (4, 4.0, 4.0)]);
    }
}
