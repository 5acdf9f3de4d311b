//! Runs the autoscaler over traces and prints what each came to.
//!
//! `cargo run --release -p stokehold-sim --example try -- [PLANT] [STARTUP_S] [TRACE]`: PLANT is a
//! built-in one or a file, TRACE the name of a made trace or a file; without it all made ones run.

#![allow(clippy::print_stdout, reason = "a program for a terminal")]

use std::time::{Duration, Instant};

use apa::Sample;
use shared::units::MonoTime;
use sim::engine::{self, Options, Scenario};
use sim::plant::Plant;
use sim::policy::{Orders, Policy};
use sim::synth::Shape;
use sim::trace::{self, Fill, Kind, Trace};

struct Apa {
    policy: apa::Policy,
    autoscaler: apa::Autoscaler,
}

impl Policy for Apa {
    fn name(&self) -> &str {
        "apa"
    }

    fn second(&mut self, sample: Option<&Sample>, now: MonoTime) -> Orders {
        let orders = self.autoscaler.second(&self.policy, sample.cloned(), now);
        Orders {
            desired_replicas: orders.desired_replicas,
            target_concurrency: Some(orders.target_concurrency()),
            warm: 0,
            horizontal: orders.horizontal.map(|it| it.explanation.short()),
            vertical: orders
                .vertical
                .first()
                .map(|(_, it)| it.explanation.short()),
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let plant = arguments.next().unwrap_or_else(|| "cpu".into());
    let startup_s = arguments
        .next()
        .map_or(10.0, |it| it.parse().expect("seconds"));
    let only = arguments.next();
    let plant = match Plant::built_in(&plant) {
        Some(plant) => plant,
        None => {
            let bytes = std::fs::read(&plant).expect("a built-in plant or a file");
            Plant::parse(&plant, &bytes).expect("a plant")
        }
    }
    .with_startup(Duration::from_secs_f64(startup_s));
    let made = Shape::standard().map(|(name, shape)| shape.trace(name, Kind::Rate, 1));
    let traces: Vec<Trace> = match only {
        Some(only) if std::path::Path::new(&only).is_file() => {
            vec![trace::open(only.as_ref(), Fill::No).expect("a trace")]
        }
        only => made
            .into_iter()
            .filter(|trace| only.as_ref().is_none_or(|only| *only == trace.name))
            .collect(),
    };
    for trace in traces {
        let name = trace.name.clone();
        let scenario = Scenario {
            trace,
            plant: plant.clone(),
            options: Options::default(),
        };
        let policy = apa::Policy {
            max_replicas: 10_000,
            startup: Some(Duration::from_secs_f64(startup_s)),
            ..apa::Policy::default()
        };
        let mut apa = Apa {
            autoscaler: apa::Autoscaler::new(&policy, 1, MonoTime::ZERO),
            policy,
        };
        let before = Instant::now();
        let outcome = engine::run(&scenario, &mut apa);
        let took = before.elapsed().as_secs_f64();
        println!("{name}: {:#?}", outcome.measures);
        println!(
            "floor {:.4}, took {took:.2} s, {:.2} s a simulated day",
            engine::floor(&scenario),
            took * 86_400.0 / f64::from(scenario.trace.length_s)
        );
    }
}
