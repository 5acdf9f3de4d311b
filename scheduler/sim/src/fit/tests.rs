use std::time::Duration;

use apa::Sample;
use shared::units::MonoTime;

use super::*;
use crate::engine::{Options, Scenario, run};
use crate::policy::{Orders, Policy};
use crate::record::Second;
use crate::synth::Shape;
use crate::trace::Kind;

/// A fixed number of replicas without a target, whose samples are kept.
struct Recorder {
    replicas: u32,
    recording: Recording,
}

impl Policy for Recorder {
    fn name(&self) -> &str {
        "recorder"
    }

    fn second(&mut self, sample: Option<&Sample>, now: MonoTime) -> Orders {
        if let Some(sample) = sample {
            self.recording.seconds.push(Second {
                t: now.since_origin().as_secs(),
                sample: sample.clone(),
            });
        }
        Orders {
            desired_replicas: self.replicas,
            target_concurrency: Some(100_000),
            warm: 0,
            horizontal: None,
            vertical: None,
        }
    }
}

/// A run in which each replica meets loads between these shares of what it takes at its best point.
fn recorded(plant: &Plant, low: f64, high: f64, seed: u64) -> Recording {
    let curve = plant.curve(Duration::ZERO);
    let most = 2.0 * curve.throughput(plant.best_point());
    let ramp = Shape::Ramp {
        low: low * most,
        high: high * most,
        at_s: 60,
        over_s: 2400,
        length_s: 2460,
    };
    let mut recorder = Recorder {
        replicas: 2,
        recording: Recording::default(),
    };
    let scenario = Scenario {
        trace: ramp.trace("ramp", Kind::Rate, 1),
        plant: plant.clone(),
        options: Options {
            initial_replicas: 2,
            seed,
            ..Options::default()
        },
    };
    run(&scenario, &mut recorder);
    recorder.recording
}

fn plant(text: &str) -> Plant {
    Plant::parse("p", text.as_bytes()).expect("valid")
}

#[test]
fn the_knee_of_a_recorded_plant_is_found_again_whatever_its_kind() {
    let noise = "[noise]\nservice = 0.3\ngauges = 0.02\n";
    for (text, high) in [
        ("kind = \"cpu\"\nservice_time = \"50ms\"\nknee = 6\n", 1.05),
        ("kind = \"cpu\"\nservice_time = \"200ms\"\nknee = 2\n", 1.05),
        (
            "kind = \"io\"\nservice_time = \"120ms\"\nknee = 200\n",
            1.02,
        ),
        (
            "kind = \"gpu\"\nservice_time = \"500ms\"\nknee = 40\nslope = 0.01\n",
            1.05,
        ),
        (
            "kind = \"usl\"\nservice_time = \"100ms\"\ncontention = 0.03\ncoherency = 0.0005\n",
            1.2,
        ),
    ] {
        for seed in 1..=3 {
            let original = plant(&format!("{text}{noise}"));
            let fitted = fit("fitted", &recorded(&original, 0.05, high, seed), None).expect(text);
            let (expected, found) = (original.best_point(), fitted.plant.best_point());
            let close = (found - expected).abs() <= (0.15 * expected).max(1.0);
            assert!(
                close,
                "{text}: seed {seed}: {expected} {found} {:?}",
                fitted.plant
            );
            let time_s = |plant: &Plant| plant.curve(Duration::ZERO).time_s(1.0);
            let alone = time_s(&fitted.plant) / time_s(&original);
            assert!((0.9..1.1).contains(&alone), "{text}: {alone}");
            assert!(fitted.error < 0.1, "{text}: {}", fitted.error);
        }
    }
}

#[test]
fn noise_and_resources_are_found_again() {
    let original = Plant::built_in("cpu").expect("there");
    let fitted = fit("fitted", &recorded(&original, 0.05, 1.05, 1), None).expect("a fit");
    let noise = fitted.plant.noise.service;
    assert!((noise - original.noise.service).abs() < 0.05, "{noise}");
    let cpu = fitted.plant.usage.cpu.expect("seen");
    assert!(
        (cpu.idle - 0.02).abs() < 0.05 && (cpu.full - 0.98).abs() < 0.05,
        "{cpu:?}"
    );
    assert_eq!(fitted.plant.usage.gpu_sm, None);
    assert_eq!(fitted.plant.class, original.class);
}

#[test]
fn a_recording_that_never_left_low_load_is_refused_with_what_was_seen() {
    let original = Plant::built_in("cpu").expect("there");
    let refused = fit("fitted", &recorded(&original, 0.05, 0.7, 1), None).expect_err("no knee");
    assert!(matches!(refused, FitError::OnlyLowLoad { .. }), "{refused}");
    assert!(
        refused
            .to_string()
            .starts_with("the recording never left low load: with up to 4.")
    );
}

#[test]
fn a_recording_that_never_was_at_low_load_is_refused() {
    let original = Plant::built_in("cpu").expect("there");
    let mut recording = recorded(&original, 0.05, 1.05, 1);
    let beyond = |second: &Second| second.sample.groups.iter().all(|it| it.active > 2.0 * 8.0);
    recording.seconds.retain(beyond);
    let refused = fit("fitted", &recording, None).expect_err("no time alone");
    assert!(
        matches!(
            refused,
            FitError::OnlyHighLoad { .. } | FitError::TooLittle { .. }
        ),
        "{refused}"
    );
}

#[test]
fn an_empty_recording_is_too_little() {
    let refused = fit("fitted", &Recording::default(), None).expect_err("nothing there");
    assert_eq!(
        refused,
        FitError::TooLittle {
            blocks: 0,
            points: 0
        }
    );
}

#[test]
fn a_fitted_plant_is_written_as_a_file_and_read_back_as_it_was() {
    let original = Plant::built_in("gpu").expect("there");
    let fitted = fit("fitted", &recorded(&original, 0.05, 1.05, 1), None).expect("a fit");
    let text = fitted.plant.to_toml();
    let read = Plant::parse("fitted", text.as_bytes()).expect("valid");
    assert_eq!(read.to_toml(), text);
    assert_eq!(read.best_point(), fitted.plant.best_point());
}
