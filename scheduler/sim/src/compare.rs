//! One scenario, several policies: who is given what, and Knative's best setting in hindsight.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::engine::{self, Outcome, Scenario};
use crate::policy::apa::Apa;
use crate::policy::hpa::Hpa;
use crate::policy::kpa::{Kpa, Settings};
use crate::policy::ray::Ray;
use crate::policy::{Limits, Policy};

/// Shares of load above capacity that differ by less are taken for equal.
pub const EQUAL_EXCESS: f64 = 0.001;

/// The grid of `kpa-best`: utilisation from all of a replica down to 15 %.
const UTILIZATIONS: [f64; 18] = [
    1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2,
    0.15,
];
/// And its scale-down delays, in seconds.
const DELAYS_S: [u64; 3] = [0, 60, 300];
/// Settings that reach the excess and are dearer than one before, in a row, until a delay's search
/// ends: a lower utilisation holds more replicas, but for the backlog that a higher one ran into.
const DEARER_IN_A_ROW: u32 = 2;

/// A policy by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Apa,
    Kpa,
    KpaTuned,
    KpaBest,
    Hpa,
    Ray,
}

/// A text that names no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a policy: expected apa, kpa, kpa-tuned, kpa-best, hpa or ray")]
pub struct UnknownPolicy(String);

impl Name {
    pub const ALL: [Name; 6] = [
        Name::Apa,
        Name::Kpa,
        Name::KpaTuned,
        Name::KpaBest,
        Name::Hpa,
        Name::Ray,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Name::Apa => "apa",
            Name::Kpa => "kpa",
            Name::KpaTuned => "kpa-tuned",
            Name::KpaBest => "kpa-best",
            Name::Hpa => "hpa",
            Name::Ray => "ray",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Name {
    type Err = UnknownPolicy;
    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        let known = Name::ALL.into_iter().find(|name| name.as_str() == text);
        known.ok_or_else(|| UnknownPolicy(text.chars().take(80).collect()))
    }
}

/// A scenario and what an operator asked for: the same for every policy.
#[derive(Clone, Debug)]
pub struct Contest {
    pub scenario: Scenario,
    pub policy: apa::Policy,
}

/// The cheapest setting of Knative's autoscaler that did no worse.
#[derive(Clone, Debug)]
pub struct Best {
    pub outcome: Outcome,
    pub settings: Settings,
    /// `false`: no setting reached the excess that was asked for; this is the one of least excess.
    pub reaches: bool,
}

impl Contest {
    pub fn limits(&self) -> Limits {
        Limits {
            min_replicas: self.policy.min_replicas,
            max_replicas: self.policy.max_replicas,
            scale_to_zero: self.policy.scale_to_zero,
        }
    }

    /// Lets one policy meet the scenario; `None` for [`Name::KpaBest`], which is a search.
    pub fn run(&self, name: Name) -> Option<Outcome> {
        let limits = self.limits();
        let mut policy: Box<dyn Policy> = match name {
            Name::Apa => Box::new(Apa::new(self.policy.clone())),
            Name::Kpa => Box::new(Kpa::new("kpa", Settings::untuned(limits))),
            Name::KpaTuned => {
                let settings = Settings::tuned(self.knee(), limits);
                Box::new(Kpa::new("kpa-tuned", settings))
            }
            Name::KpaBest => return None,
            Name::Hpa => Box::new(Hpa::new(self.knee(), limits)),
            Name::Ray => Box::new(Ray::new(limits)),
        };
        Some(self.meet(policy.as_mut()))
    }

    pub fn apa(&self) -> Outcome {
        self.meet(&mut Apa::new(self.policy.clone()))
    }

    /// What Knative does with settings of its own.
    pub fn knative(&self, settings: Settings) -> Outcome {
        self.meet(&mut Kpa::new("kpa-best", settings))
    }

    /// All settings among which the best is looked for.
    pub fn grid(&self) -> impl Iterator<Item = Settings> + '_ {
        let delays = DELAYS_S.map(Duration::from_secs).into_iter();
        delays.flat_map(|delay| UTILIZATIONS.map(|utilization| self.setting(utilization, delay)))
    }

    /// Searches utilisation and scale-down delay, with the true knee given, for the cheapest setting
    /// with no more excess than `excess`. Delays are searched on threads of their own where
    /// `parallel`. `ran` is called after each run.
    pub fn kpa_best(&self, excess: f64, parallel: bool, ran: &(dyn Fn() + Sync)) -> Best {
        let search = |delay_s| self.best_of_delay(Duration::from_secs(delay_s), excess, ran);
        let found: Vec<Best> = if parallel {
            std::thread::scope(|scope| {
                let searches = DELAYS_S.map(|delay_s| scope.spawn(move || search(delay_s)));
                let found = searches.map(|it| it.join().expect("a search does not panic"));
                found.into()
            })
        } else {
            DELAYS_S.map(search).into()
        };
        let best = found.into_iter().reduce(better);
        best.expect("the grid is not empty")
    }

    fn best_of_delay(&self, delay: Duration, excess: f64, ran: &(dyn Fn() + Sync)) -> Best {
        let mut best: Option<Best> = None;
        let mut dearer = 0;
        for utilization in UTILIZATIONS {
            let settings = self.setting(utilization, delay);
            let outcome = self.knative(settings);
            ran();
            let reaches = outcome.measures.excess_share <= excess + EQUAL_EXCESS;
            let next = Best {
                outcome,
                settings,
                reaches,
            };
            let cost = next.outcome.measures.replica_seconds;
            best = Some(match best {
                None => next,
                Some(best) => {
                    let found = best.reaches && reaches;
                    dearer = if found && cost >= best.outcome.measures.replica_seconds {
                        dearer + 1
                    } else {
                        0
                    };
                    better(best, next)
                }
            });
            if dearer >= DEARER_IN_A_ROW {
                break;
            }
        }
        best.expect("the grid is not empty")
    }

    fn setting(&self, utilization: f64, delay: Duration) -> Settings {
        Settings {
            utilization,
            scale_down_delay: delay,
            ..Settings::tuned(self.knee(), self.limits())
        }
    }

    /// The plant's, with which Knative and Kubernetes are tuned.
    pub fn knee(&self) -> u32 {
        // Whole, and at least 1.
        self.scenario.plant.best_point() as u32
    }

    fn meet(&self, policy: &mut dyn Policy) -> Outcome {
        engine::run(&self.scenario, policy)
    }
}

/// The cheaper one of those that reach; else the one that comes nearest.
fn better(a: Best, b: Best) -> Best {
    let (left, right) = (&a.outcome.measures, &b.outcome.measures);
    let b_wins = match (a.reaches, b.reaches) {
        (true, true) => right.replica_seconds < left.replica_seconds,
        (false, false) => right.excess_share < left.excess_share,
        (a_reaches, _) => !a_reaches,
    };
    if b_wins { b } else { a }
}
