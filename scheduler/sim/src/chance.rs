//! Drawn numbers: arrivals, start-up times, noise. Every use has a stream of its own, so that two
//! policies that start different numbers of replicas still meet the same arrivals.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, SeedableRng as _};

/// Beyond this mean a rounded normal cannot be told from a Poisson draw in what is measured here,
/// and it costs the same however large the mean is.
const POISSON_BY_INVERSION: f64 = 32.0;

/// Up to here each trial is made; beyond, a rounded normal is as good.
const BINOMIAL_BY_TRIALS: f64 = 64.0;

/// What a stream is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Arrivals = 1,
    Departures,
    Startups,
    Noise,
    Disturbance,
    Synthetic,
}

/// A seeded stream of draws: the same seed and use give the same numbers on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Chance {
    bits: Xoshiro256PlusPlus,
    /// The second of the pair of normals that one transform gives.
    spare: Option<f64>,
}

/// A mean of events, with what is the same for every draw around it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expected {
    pub(crate) mean: f64,
    spread: f64,
    /// Chance that there is none.
    none: f64,
}

impl Expected {
    pub(crate) fn new(mean: f64) -> Self {
        Self {
            mean,
            spread: mean.max(0.0).sqrt(),
            none: (-mean).exp(),
        }
    }
}

impl Chance {
    pub(crate) fn new(seed: u64, stream: Stream) -> Self {
        // An odd multiplier keeps streams of neighbouring seeds apart.
        let seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (stream as u64);
        Self {
            bits: Xoshiro256PlusPlus::seed_from_u64(seed),
            spare: None,
        }
    }

    /// In [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with this probability. Nothing is drawn where nothing is to be decided.
    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.unit() < probability
    }

    /// Mean 0, standard deviation 1 (Marsaglia's polar method).
    pub(crate) fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (x, y) = (2.0 * self.unit() - 1.0, 2.0 * self.unit() - 1.0);
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                let scale = (-2.0 * square.ln() / square).sqrt();
                self.spare = Some(y * scale);
                return x * scale;
            }
        }
    }

    /// A factor with mean 1 whose logarithm is normal with this standard deviation.
    pub(crate) fn lognormal_factor(&mut self, sigma: f64) -> f64 {
        if sigma == 0.0 {
            return 1.0;
        }
        (sigma * self.normal() - sigma * sigma / 2.0).exp()
    }

    /// A whole number, as the number of independent events where this many are expected.
    pub(crate) fn poisson(&mut self, expected: &Expected) -> f64 {
        let mean = expected.mean;
        if mean <= 0.0 {
            return 0.0;
        }
        if mean > POISSON_BY_INVERSION {
            return (mean + expected.spread * self.normal()).round().max(0.0);
        }
        let mut left = self.unit();
        let mut chance = expected.none;
        let mut events = 0.0;
        while left >= chance && events < 1000.0 {
            left -= chance;
            events += 1.0;
            chance *= mean / events;
        }
        events
    }

    /// How many of a whole number of trials succeed, each with this probability.
    pub(crate) fn binomial(&mut self, trials: f64, probability: f64) -> f64 {
        let trials = trials.max(0.0);
        if trials > BINOMIAL_BY_TRIALS {
            let (mean, spread) = (
                trials * probability,
                (trials * probability * (1.0 - probability)).sqrt(),
            );
            return (mean + spread * self.normal()).round().clamp(0.0, trials);
        }
        (0..trials as u32)
            .filter(|_| self.happens(probability))
            .count() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_and_variance(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let draws: Vec<f64> = (0..40_000).map(|_| draw()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let squares = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>();
        (mean, squares / draws.len() as f64)
    }

    #[test]
    fn poisson_draws_have_the_mean_and_the_variance_asked_for_on_both_sides_of_the_switch() {
        for expected in [0.02, 1.5, 31.0, 33.0, 900.0] {
            let mut chance = Chance::new(7, Stream::Arrivals);
            let (mean, variance) = mean_and_variance(|| chance.poisson(&Expected::new(expected)));
            assert!((mean / expected - 1.0).abs() < 0.05, "{expected}: {mean}");
            assert!(
                (variance / expected - 1.0).abs() < 0.1,
                "{expected}: {variance}"
            );
        }
    }

    #[test]
    fn a_lognormal_factor_has_mean_one() {
        let mut chance = Chance::new(7, Stream::Noise);
        let (mean, _) = mean_and_variance(|| chance.lognormal_factor(0.5));
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
    }

    #[test]
    fn streams_of_one_seed_differ_and_the_same_stream_repeats() {
        let first = |seed, stream| Chance::new(seed, stream).unit();
        assert_eq!(first(1, Stream::Noise), first(1, Stream::Noise));
        assert_ne!(first(1, Stream::Noise), first(1, Stream::Arrivals));
        assert_ne!(first(1, Stream::Noise), first(2, Stream::Noise));
    }
}
