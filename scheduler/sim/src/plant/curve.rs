//! The time a request spends in a replica against how many are there at once.
//!
//! Written with S for that time and X(c) = c / S(c) for the throughput. Between whole numbers the
//! curves are read as means; below one request nothing is faster than with one.

/// The shape of a replica's service time. Times are in seconds, of a request of ordinary work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Curve {
    /// `S = service_s` up to the knee, `S = service_s (1 + slope (c / knee - 1))` beyond. With a
    /// slope of 1 throughput stays at the knee's: k cores shared (`cpu`), k connections waited for
    /// (`io`). Above 1 it falls, below 1 it still grows a little.
    FlatThenLinear {
        service_s: f64,
        knee: f64,
        slope: f64,
    },
    /// A batching accelerator: `S = service_s (1 + slope c)` up to `batch` requests; beyond, they wait
    /// for a place in the batch and throughput stays.
    Batching {
        service_s: f64,
        batch: f64,
        slope: f64,
    },
    /// Gunther's Universal Scalability Law: `X = c / (service_s (1 + s (c - 1) + k c (c - 1)))` with
    /// contention s and coherency k. With k above 0 throughput falls beyond its peak.
    Universal {
        service_s: f64,
        contention: f64,
        coherency: f64,
    },
}

/// How much longer than alone a request may take before its latency counts as harmed, where nobody
/// states an objective. The vertical axis measures by the same.
pub const TOLERANCE: f64 = 1.5;

/// Nobody lets a replica have more requests at once.
const MOST_CONCURRENT: f64 = 1e6;

impl Curve {
    /// Time in the replica with `c` requests there at once, those that wait inside it included.
    pub fn time_s(&self, c: f64) -> f64 {
        let c = c.max(1.0);
        match *self {
            Curve::FlatThenLinear {
                service_s,
                knee,
                slope,
            } => service_s * (1.0 + slope * (c / knee - 1.0).max(0.0)),
            Curve::Batching {
                service_s,
                batch,
                slope,
            } => {
                let together = c.min(batch);
                service_s * (1.0 + slope * together) * (c / together)
            }
            Curve::Universal {
                service_s,
                contention,
                coherency,
            } => service_s * (1.0 + contention * (c - 1.0) + coherency * c * (c - 1.0)),
        }
    }

    /// Requests that end in a second with `c` of them there at once.
    pub fn throughput(&self, c: f64) -> f64 {
        c / self.time_s(c)
    }

    /// Up to this many at once the time does not depend on how many they are.
    pub fn flat_until(&self) -> f64 {
        match *self {
            Curve::FlatThenLinear { knee, .. } => knee.max(1.0),
            Curve::Batching { .. } | Curve::Universal { .. } => 1.0,
        }
    }

    /// The most requests at once, at least 1 and whole, that still add throughput while none takes
    /// longer than [`TOLERANCE`] times what it takes alone: the knee that is to be found.
    pub fn best_point(&self) -> f64 {
        let unharmed = self.time_s(1.0) * TOLERANCE;
        let most = match *self {
            Curve::FlatThenLinear { knee, .. } => knee,
            Curve::Batching {
                service_s,
                batch,
                slope,
            } if slope > 0.0 => batch.min((unharmed / service_s - 1.0) / slope),
            Curve::Batching { batch, .. } => batch,
            Curve::Universal {
                service_s,
                contention,
                coherency,
            } => {
                let excess = unharmed / service_s - 1.0;
                // contention (c - 1) + coherency c (c - 1) = excess, solved for c.
                let b = contention - coherency;
                let held = if coherency > 0.0 {
                    let root = (b * b + 4.0 * coherency * (contention + excess)).sqrt();
                    (root - b) / (2.0 * coherency)
                } else if contention > 0.0 {
                    1.0 + excess / contention
                } else {
                    MOST_CONCURRENT
                };
                let peak = if coherency > 0.0 {
                    ((1.0 - contention).max(0.0) / coherency).sqrt()
                } else {
                    MOST_CONCURRENT
                };
                held.min(peak)
            }
        };
        // A root that should be whole may fall a hair short.
        (most + 1e-9).floor().clamp(1.0, MOST_CONCURRENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Curve = Curve::FlatThenLinear {
        service_s: 0.05,
        knee: 6.0,
        slope: 1.0,
    };

    #[test]
    fn cores_serve_flat_up_to_their_number_and_share_beyond() {
        assert_eq!(CPU.time_s(0.2), 0.05);
        assert_eq!(CPU.time_s(6.0), 0.05);
        assert_eq!(CPU.time_s(12.0), 0.1);
        assert_eq!(CPU.throughput(6.0), CPU.throughput(60.0));
        assert_eq!(CPU.best_point(), 6.0);
    }

    #[test]
    fn a_batch_slows_with_its_size_and_what_exceeds_it_waits() {
        let gpu = Curve::Batching {
            service_s: 0.1,
            batch: 40.0,
            slope: 0.01,
        };
        assert!((gpu.time_s(40.0) - 0.14).abs() < 1e-12);
        assert!((gpu.time_s(80.0) - 0.28).abs() < 1e-12);
        assert_eq!(gpu.throughput(40.0), gpu.throughput(80.0));
        assert_eq!(gpu.best_point(), 40.0);
        let slow = Curve::Batching {
            service_s: 0.1,
            batch: 40.0,
            slope: 0.1,
        };
        // 1 + 0.1 c = 1.5 (1 + 0.1) at c = 6.5.
        assert_eq!(slow.best_point(), 6.0);
    }

    #[test]
    fn a_universal_curve_is_best_at_its_peak_or_where_latency_is_harmed() {
        let retrograde = Curve::Universal {
            service_s: 0.1,
            contention: 0.0,
            coherency: 0.01,
        };
        // The time is 1.5 times that of one where c (c - 1) = 50.
        assert_eq!(retrograde.best_point(), 7.0);
        assert!(retrograde.throughput(20.0) < retrograde.throughput(10.0));
        let contended = Curve::Universal {
            service_s: 0.1,
            contention: 0.1,
            coherency: 0.0,
        };
        assert_eq!(contended.best_point(), 6.0);
    }
}
