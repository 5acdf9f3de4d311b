//! Gathers what production would have seen of a second.

use apa::{Group, HardwareClass, Sample};

use super::Disturbance;
use super::pool::Serving;
use crate::chance::{Chance, Stream};

/// The 95th percentile of a normal, in standard deviations.
const Z95: f64 = 1.645;
/// Standard errors of a sample's median and 95th percentile, in deviations over sqrt(n), of a normal.
const MEDIAN_ERROR: f64 = 1.25;
const P95_ERROR: f64 = 2.11;

/// Sums since the last sample was taken.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    substeps: f64,
    /// Request-sub-steps at ready replicas, at draining ones, in the queue.
    active: f64,
    draining: f64,
    queued: f64,
    arrivals: f64,
    ended: f64,
    ended_draining: f64,
    rejected: f64,
    /// Time in the replica, weighted by the requests that ended.
    time_s: f64,
}

/// What a sub-step adds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reading {
    pub(crate) active: f64,
    pub(crate) draining: f64,
    pub(crate) queued: f64,
    pub(crate) arrivals: f64,
    pub(crate) ended: f64,
    pub(crate) ended_draining: f64,
    pub(crate) rejected: f64,
    /// Mean time in the replica of those that ended at ready ones.
    pub(crate) time_s: f64,
}

pub(crate) struct Gauges {
    sums: Sums,
    /// Fractions of requests that ended and were not reported yet: counters are whole.
    rest: Rest,
    noise: Chance,
    disturbed: Chance,
    disturbance: Disturbance,
    taken: Option<Sample>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rest {
    arrivals: f64,
    ended: f64,
    ended_draining: f64,
    rejected: f64,
}

fn whole(sum: f64, rest: &mut f64) -> f64 {
    let with_rest = sum + *rest;
    // A hair below a whole number is that number.
    let reported = (with_rest + 1e-9).floor().max(0.0);
    *rest = with_rest - reported;
    reported
}

impl Gauges {
    pub(crate) fn new(disturbance: Disturbance, seed: u64) -> Self {
        Self {
            sums: Sums::default(),
            rest: Rest::default(),
            noise: Chance::new(seed, Stream::Noise),
            disturbed: Chance::new(seed, Stream::Disturbance),
            disturbance,
            taken: None,
        }
    }

    /// The sub-step of the coming second after which its sample is taken: the last one, unless
    /// sampling is shifted.
    pub(crate) fn sample_after(&mut self, substeps: u32, step_s: f64) -> u32 {
        let most = (self.disturbance.shift_s / step_s).round();
        if most < 1.0 {
            return substeps - 1;
        }
        let early = (self.disturbed.unit() * (most + 1.0)).floor() as u32;
        (substeps - 1).saturating_sub(early)
    }

    pub(crate) fn read(&mut self, reading: Reading) {
        let sums = &mut self.sums;
        sums.substeps += 1.0;
        sums.active += reading.active;
        sums.draining += reading.draining;
        sums.queued += reading.queued;
        sums.arrivals += reading.arrivals;
        sums.ended += reading.ended;
        sums.ended_draining += reading.ended_draining;
        sums.rejected += reading.rejected;
        sums.time_s += reading.ended * reading.time_s;
    }

    /// Takes the sample of what was read since the last one.
    pub(crate) fn take(&mut self, ready: u32, coming: u32, serving: &Serving<'_>) {
        let sums = std::mem::take(&mut self.sums);
        let ended = whole(sums.ended, &mut self.rest.ended);
        let ended_draining = whole(sums.ended_draining, &mut self.rest.ended_draining);
        let time_s = if sums.ended > 0.0 {
            sums.time_s / sums.ended
        } else {
            0.0
        };
        let (p50_ms, p95_ms) = self.quantiles(ended, time_s, serving.plant.noise.service);
        let noise = serving.plant.noise.gauges;
        let active = sums.active / sums.substeps * self.gauge(noise);
        let draining = sums.draining / sums.substeps * self.gauge(noise);
        let queued = sums.queued / sums.substeps * self.gauge(noise);
        let mut sample = Sample {
            active: active + draining,
            queued,
            arrivals: whole(sums.arrivals, &mut self.rest.arrivals),
            completions: ended + ended_draining,
            rejected: whole(sums.rejected, &mut self.rest.rejected),
            replicas_ready: ready,
            replicas_starting: coming,
            groups: Vec::new(),
        };
        if ready > 0 {
            let each = sums.active / sums.substeps / f64::from(ready);
            sample.groups.push(Group {
                class: HardwareClass(serving.plant.class.0.clone()),
                exploring: false,
                replicas: ready,
                active,
                completions: ended,
                p50_ms,
                p95_ms,
                resources: self.resources(serving, each, noise),
            });
        }
        self.taken = Some(self.disturb(sample));
    }

    /// The second's sample; `None` where it was lost on its way.
    pub(crate) fn sample(&mut self) -> Option<Sample> {
        let taken = self.taken.take();
        let lost = self.disturbed.happens(self.disturbance.dropped);
        taken.filter(|_| !lost)
    }

    fn disturb(&mut self, mut sample: Sample) -> Sample {
        if self.disturbed.happens(self.disturbance.outliers) {
            let by = self.disturbance.outlier_factor;
            sample.active *= by;
            sample.queued *= by;
            for group in &mut sample.groups {
                group.active *= by;
            }
        }
        sample
    }

    fn gauge(&mut self, noise: f64) -> f64 {
        if noise == 0.0 {
            return 1.0;
        }
        (1.0 + noise * self.noise.normal()).max(0.0)
    }

    /// Of so many requests with this mean time: what their median and 95th percentile came out as.
    fn quantiles(&mut self, ended: f64, time_s: f64, sigma: f64) -> (Option<f64>, Option<f64>) {
        if ended < 1.0 {
            return (None, None);
        }
        let median = time_s * 1000.0 * (-sigma * sigma / 2.0).exp();
        if sigma == 0.0 {
            return (Some(median), Some(median));
        }
        let error = sigma / ended.sqrt();
        let p50 = median * (MEDIAN_ERROR * error * self.noise.normal()).exp();
        // Of one request both are the same; of a few the 95th percentile is their slowest.
        let above = Z95 * (1.0 - 1.0 / ended) * sigma;
        let slack = P95_ERROR * error * (1.0 - 1.0 / ended);
        let p95 = median * (above + slack * self.noise.normal()).exp();
        (Some(p50), Some(p95.max(p50)))
    }

    fn resources(&mut self, serving: &Serving<'_>, each: f64, noise: f64) -> apa::Resources {
        let mut resources = serving.plant.resources(&serving.curve, serving.best, each);
        for value in [
            &mut resources.cpu,
            &mut resources.gpu_sm,
            &mut resources.gpu_tensor,
            &mut resources.gpu_membw,
            &mut resources.memory,
            &mut resources.io_wait,
            &mut resources.pressure,
        ] {
            let factor = self.gauge(noise);
            *value = value.map(|it| (it * factor).min(1.0));
        }
        resources
    }
}
