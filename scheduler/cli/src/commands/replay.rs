//! `stokehold replay`: what was measured of a real endpoint, run through the simulator with another
//! policy, on replicas that behave like the recorded ones.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use apa::{Group, HardwareClass, Resources, Sample};
use clap::Args;
use serde_json::json;
use shared::api::autoscaler::{Explained, ExplainedEntity, Series, SeriesPoint, TargetOrigin};
use shared::ids::{EndpointName, EntityName};
use sim::compare::{Contest, Name};
use sim::engine::{Options, Scenario};
use sim::fit;
use sim::plant::Plant;
use sim::record::{Recording, Second};
use sim::span::Span;
use sim::trace::Fill;

use crate::client::{Call, Client};
use crate::commands::endpoint::description_path;
use crate::commands::simulate::{self, Picture};
use crate::exit::Stop;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  stokehold replay iris
  stokehold replay iris --last 10min --policy apa,kpa,kpa-best --plot iris.html
  stokehold replay iris --entity iris-2 --record iris.jsonl --output json

The scheduler keeps seconds for 10 min, stretches of 10 s for 2 h and of 1 min for 24 h, as far as it has
run; the finest that reach back far enough are taken. A stretch's arrivals are spread evenly over it, so
that bursts within it are not seen. The replicas are modelled on what was recorded, which must show both
low load and load beyond what a replica takes well; where it does not, name a plant.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReplayArgs {
    name: EndpointName,
    /// Which served entity; not needed where the endpoint has one.
    #[arg(long, value_name = "NAME")]
    entity: Option<EntityName>,
    /// How much of what was recorded.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    last: Span,
    /// Policies to compare, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "apa,kpa,kpa-tuned")]
    #[arg(value_name = "NAME,..")]
    policy: Vec<Name>,
    /// What a replica is, in place of one that is fitted to the recording: cpu, gpu, io or a file.
    #[arg(long, value_name = "NAME|FILE")]
    plant: Option<String>,
    /// Of all chance: the same seed gives the same run.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Fill stretches of which nothing is known with the arrivals before them.
    #[arg(long)]
    fill: bool,
    /// Draw the result over time.
    #[arg(long, value_name = "FILE.svg|FILE.html")]
    plot: Option<PathBuf>,
    /// Keep the recording, one JSON object a second.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// What the scheduler keeps: the parameter's value, seconds of a point, and how far it reaches back.
const RESOLUTIONS: [(&str, Duration); 3] = [
    ("1s", Duration::from_secs(600)),
    ("10s", Duration::from_secs(7200)),
    ("1m", Duration::from_secs(86_400)),
];

pub(crate) async fn run(args: &ReplayArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let picture = Picture::at(args.plot.as_deref())?;
    let (series, entity) = recorded(args, client).await?;
    let recording = recording(&series.points, series.resolution_s, &class(&entity));
    if recording.seconds.is_empty() {
        return Err(Stop::NotFound(format!(
            "nothing was measured of {}/{} in the last {}",
            args.name, series.entity, args.last
        ))
        .into());
    }
    if let Some(path) = &args.record {
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        let written = recording.write(BufWriter::new(file));
        written.with_context(|| format!("write {}", path.display()))?;
    }
    let name = format!("{}/{}", args.name, series.entity);
    let plant = plant(args, &name, &recording, output)?;
    let contest = contest(args, &name, &entity, &recording, plant)?;
    let played = simulate::play(contest, &args.policy, &picture, output)?;
    let was = Was::of(&recording);
    if output.is_json() {
        return output.json(&json!({
            "endpoint": args.name,
            "entity": series.entity,
            "resolution_s": series.resolution_s,
            "recorded": was,
            "policies": played.measures(),
        }));
    }
    output.note(was.told());
    played.show(output)
}

/// The entity's series, and how it stands now.
async fn recorded(args: &ReplayArgs, client: &Client) -> anyhow::Result<(Series, ExplainedEntity)> {
    let reaching = RESOLUTIONS
        .iter()
        .position(|(_, kept)| args.last.0 <= *kept);
    let reaching = reaching.ok_or_else(|| {
        Stop::Usage(format!(
            "--last: {} is more than the 24h that are kept",
            args.last
        ))
    })?;
    let mut series = series(args, reaching, client).await?;
    // A scheduler that has not run for long has all of it in finer stretches, too.
    for finer in 0..reaching {
        let finer = self::series(args, finer, client).await?;
        if reaches_as_far(&finer.points, &series.points) {
            series = finer;
            break;
        }
    }
    let path = description_path(&args.name);
    let call = Call::get(format!("{path}/explain")).query("entity", &series.entity);
    let mut explained: Explained = client.call(call).await?;
    let entity = explained
        .entities
        .pop()
        .with_context(|| format!("{}/{} does not serve any more", args.name, series.entity))?;
    Ok((series, entity))
}

/// What was recorded in the asked time, in one of the resolutions.
async fn series(args: &ReplayArgs, resolution: usize, client: &Client) -> anyhow::Result<Series> {
    let (resolution, _) = RESOLUTIONS[resolution];
    let path = format!("{}/series", description_path(&args.name));
    let mut call = Call::get(path).query("resolution", resolution);
    if let Some(entity) = &args.entity {
        call = call.query("entity", entity);
    }
    let mut series: Series = client.call(call).await?;
    // By the scheduler's clock: its last point is now.
    let newest = series.points.last().map_or(0, |point| point.unix_ms);
    let since = newest.saturating_sub(u64::try_from(args.last.0.as_millis()).unwrap_or(u64::MAX));
    series.points.retain(|point| point.unix_ms > since);
    Ok(series)
}

/// Whether finer points begin where coarser ones do, give or take one of these.
fn reaches_as_far(finer: &[SeriesPoint], coarser: &[SeriesPoint]) -> bool {
    match (finer.first(), coarser.first()) {
        (Some(finer), Some(coarser)) => finer.unix_ms <= coarser.unix_ms,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

fn class(entity: &ExplainedEntity) -> HardwareClass {
    let class = entity.targets.first().map(|target| target.class.clone());
    HardwareClass(class.unwrap_or_default())
}

/// One second for each that a point is of.
fn recording(points: &[SeriesPoint], resolution_s: u32, class: &HardwareClass) -> Recording {
    let stretch = u64::from(resolution_s.max(1));
    let mut seconds: Vec<Second> = Vec::new();
    for point in points {
        let end = point.unix_ms / 1000;
        // Whole requests, as many in all as came.
        let come = |second: u64| (point.arrivals * second as f64).round();
        for second in 1..=stretch {
            let t = (end + second).saturating_sub(stretch);
            if seconds.last().is_some_and(|last| last.t >= t) {
                continue;
            }
            let sample = Sample {
                arrivals: come(second) - come(second - 1),
                ..sample(point, class)
            };
            seconds.push(Second { t, sample });
        }
    }
    Recording { seconds }
}

fn sample(point: &SeriesPoint, class: &HardwareClass) -> Sample {
    let group = Group {
        class: class.clone(),
        exploring: false,
        replicas: point.replicas_ready,
        active: point.active,
        completions: point.completions,
        p50_ms: point.p50_ms,
        p95_ms: point.p95_ms,
        resources: Resources {
            cpu: point.cpu,
            gpu_sm: point.gpu_sm,
            gpu_tensor: point.gpu_tensor,
            gpu_membw: point.gpu_membw,
            memory: point.memory,
            io_wait: point.io_wait,
            pressure: point.pressure,
        },
    };
    Sample {
        active: point.active,
        queued: point.queued,
        arrivals: point.arrivals,
        completions: point.completions,
        rejected: point.rejected,
        replicas_ready: point.replicas_ready,
        replicas_starting: point.replicas_starting,
        groups: if group.replicas > 0 {
            vec![group]
        } else {
            Vec::new()
        },
    }
}

fn plant(
    args: &ReplayArgs,
    name: &str,
    recording: &Recording,
    output: &Output,
) -> anyhow::Result<Plant> {
    if let Some(plant) = &args.plant {
        return simulate::plant(plant);
    }
    let fitted = fit::fit(name, recording, None).with_context(|| {
        format!(
            "what was recorded of {name} does not show what its replicas take; name a plant with --plant"
        )
    })?;
    output.note(format!(
        "replicas are modelled on {} loads that were recorded, {:.0} % off in the mean",
        fitted.points.len(),
        fitted.error * 100.0
    ));
    Ok(fitted.plant)
}

/// The same bounds, start-up time and first replicas as the endpoint has or had.
fn contest(
    args: &ReplayArgs,
    name: &str,
    entity: &ExplainedEntity,
    recording: &Recording,
    plant: Plant,
) -> anyhow::Result<Contest> {
    let startup = entity
        .startup_s
        .and_then(|startup| Duration::try_from_secs_f64(startup).ok());
    let plant = match startup {
        Some(startup) => plant.with_startup(startup),
        None => plant,
    };
    let fill = if args.fill { Fill::Yes } else { Fill::No };
    let trace = recording.trace(name, fill)?;
    let first = recording.seconds.first().map(|first| &first.sample);
    let target = entity.targets.first();
    let pinned = target.filter(|target| target.origin == TargetOrigin::Pinned);
    let policy = apa::Policy {
        min_replicas: entity.min_replicas,
        max_replicas: entity.max_replicas,
        scale_to_zero: entity.min_replicas == 0,
        provisioned_concurrency: entity.provisioned_concurrency,
        latency_objective: entity
            .latency_objective_ms
            .map(|ms| Duration::from_millis(u64::from(ms))),
        startup: Some(Duration::from_secs_f64(plant.startup.mean_s)),
        pinned_target: pinned.map(|target| target.target_concurrency),
        initial_target: target.map(|target| target.target_concurrency),
        ..apa::Policy::default()
    };
    let options = Options {
        seed: args.seed,
        initial_replicas: first.map_or(1, |first| first.replicas_ready).max(1),
        ..Options::default()
    };
    Ok(Contest {
        scenario: Scenario {
            trace,
            plant,
            options,
        },
        policy,
    })
}

/// What really happened.
#[derive(Debug, PartialEq, serde::Serialize)]
struct Was {
    seconds: u64,
    replica_seconds: f64,
    mean_replicas: f64,
    max_replicas: u32,
    rejected: f64,
    changes: u64,
}

impl Was {
    fn of(recording: &Recording) -> Self {
        let samples = || recording.seconds.iter().map(|second| &second.sample);
        let seconds = recording.seconds.len() as u64;
        let replica_seconds: f64 = samples().map(|it| f64::from(it.replicas_ready)).sum();
        let ready: Vec<u32> = samples().map(|it| it.replicas_ready).collect();
        let changes = ready.windows(2).filter(|two| two[0] != two[1]).count();
        Self {
            seconds,
            replica_seconds,
            mean_replicas: replica_seconds / (seconds.max(1) as f64),
            max_replicas: ready.into_iter().max().unwrap_or(0),
            rejected: samples().map(|it| it.rejected).sum(),
            changes: changes as u64,
        }
    }

    fn told(&self) -> String {
        format!(
            "recorded: {} s with {:.0} replica-seconds, {:.1} replicas in the mean and {} at most; \
             {:.0} requests were turned away",
            self.seconds,
            self.replica_seconds,
            self.mean_replicas,
            self.max_replicas,
            self.rejected
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(end_s: u64, arrivals: f64, ready: u32) -> SeriesPoint {
        SeriesPoint {
            unix_ms: end_s * 1000,
            active: 2.5,
            arrivals,
            completions: arrivals,
            replicas_ready: ready,
            p50_ms: Some(40.0),
            cpu: Some(0.5),
            ..SeriesPoint::default()
        }
    }

    fn cpu() -> HardwareClass {
        HardwareClass("cpu".into())
    }

    #[test]
    fn a_stretch_becomes_its_seconds_with_as_many_arrivals_in_all() {
        let points = [point(110, 0.3, 1), point(120, 2.5, 2)];
        let recording = recording(&points, 10, &cpu());
        let times: Vec<u64> = recording.seconds.iter().map(|it| it.t).collect();
        assert_eq!(times, (101..=120).collect::<Vec<_>>());
        let arrivals = |range: std::ops::Range<usize>| -> f64 {
            let seconds = &recording.seconds[range];
            seconds.iter().map(|it| it.sample.arrivals).sum()
        };
        assert_eq!((arrivals(0..10), arrivals(10..20)), (3.0, 25.0));
        assert!(
            recording
                .seconds
                .iter()
                .all(|it| it.sample.arrivals.fract() == 0.0)
        );
        let group = &recording.seconds[0].sample.groups[0];
        assert_eq!((group.class.0.as_str(), group.replicas), ("cpu", 1));
        assert_eq!(
            (group.resources.cpu, group.resources.gpu_sm),
            (Some(0.5), None)
        );
    }

    #[test]
    fn a_gap_stays_one_and_no_second_comes_twice() {
        let points = [
            point(10, 1.0, 1),
            point(11, 1.0, 1),
            point(11, 9.0, 1),
            point(90, 1.0, 3),
        ];
        let recording = recording(&points, 1, &cpu());
        let times: Vec<u64> = recording.seconds.iter().map(|it| it.t).collect();
        assert_eq!(times, [10, 11, 90]);
        assert!(recording.trace("iris", Fill::No).is_err());
        let was = Was::of(&recording);
        assert_eq!(
            (was.replica_seconds, was.max_replicas, was.changes),
            (5.0, 3, 1)
        );
    }

    #[test]
    fn finer_points_are_taken_where_they_reach_back_as_far() {
        let coarse = [point(20, 1.0, 1), point(30, 1.0, 1)];
        assert!(reaches_as_far(&[point(11, 1.0, 1)], &coarse));
        assert!(
            !reaches_as_far(&[point(25, 1.0, 1)], &coarse),
            "it has forgotten"
        );
        assert!(
            reaches_as_far(&[point(3, 1.0, 1)], &[]),
            "the first stretch goes on"
        );
        assert!(!reaches_as_far(&[], &coarse));
    }

    #[test]
    fn a_time_without_replicas_has_no_group() {
        let recording = recording(&[point(5, 0.0, 0)], 1, &cpu());
        assert_eq!(recording.seconds[0].sample.groups, []);
    }

    fn args(line: &str) -> ReplayArgs {
        use crate::args::{Cli, Command};
        use clap::Parser as _;
        let words = format!("stokehold replay iris {line}");
        match Cli::try_parse_from(words.split_whitespace())
            .expect("parsed")
            .command
        {
            Command::Replay(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn entity() -> ExplainedEntity {
        ExplainedEntity {
            entity: "iris-1".parse().expect("name"),
            now: None,
            desired_replicas: 2,
            ready_replicas: 2,
            starting_replicas: 0,
            min_replicas: 1,
            max_replicas: 6,
            provisioned_concurrency: 0,
            latency_objective_ms: Some(250),
            startup_s: Some(4.0),
            targets: vec![],
            horizontal: vec![],
            vertical: vec![],
        }
    }

    /// Two replicas that take 50 ms up to six requests at once, and longer in proportion beyond it,
    /// under a load that goes up and down.
    fn recorded() -> Recording {
        let points: Vec<SeriesPoint> = (0..240)
            .map(|i: u32| {
                let phase = f64::from(i % 60) / 60.0;
                let each = 1.0 + 11.0 * (1.0 - (2.0 * phase - 1.0).abs());
                let service_s = 0.05 * (each / 6.0).max(1.0);
                let completions = 2.0 * each / service_s;
                SeriesPoint {
                    active: 2.0 * each,
                    p50_ms: Some(service_s * 1000.0),
                    p95_ms: Some(service_s * 1200.0),
                    ..point(u64::from(i + 1) * 10, completions, 2)
                }
            })
            .collect();
        recording(&points, 10, &cpu())
    }

    #[test]
    fn what_was_recorded_is_run_with_the_endpoints_own_bounds() {
        let args = args("--policy apa,kpa");
        let recording = recorded();
        let fitted = fit::fit("iris", &recording, None).expect("fits");
        assert!(fitted.error < 0.1, "{fitted:?}");
        let contest = contest(&args, "iris/iris-1", &entity(), &recording, fitted.plant);
        let contest = contest.expect("a contest");
        assert_eq!(
            (contest.policy.min_replicas, contest.policy.max_replicas),
            (1, 6)
        );
        assert_eq!(contest.policy.startup, Some(Duration::from_secs(4)));
        assert_eq!(
            contest.policy.latency_objective,
            Some(Duration::from_millis(250))
        );
        assert_eq!(contest.scenario.options.initial_replicas, 2);
        assert_eq!(contest.scenario.trace.length_s, 2400);
        let arrivals: f64 = contest.scenario.trace.by_second().map(|it| it.value).sum();
        let came: f64 = recording.seconds.iter().map(|it| it.sample.arrivals).sum();
        assert_eq!(arrivals, came);
        for name in &args.policy {
            let outcome = contest.run(*name).expect("it runs");
            let measures = outcome.measures;
            assert!((1..=6).contains(&measures.max_replicas), "{measures:?}");
            assert!(measures.replica_seconds >= 2400.0, "{measures:?}");
        }
    }

    #[test]
    fn what_was_pinned_is_pinned_in_the_replay() {
        let mut entity = entity();
        entity.targets = vec![shared::api::autoscaler::TargetInfo {
            class: "cpu".into(),
            target_concurrency: 3,
            explore: None,
            origin: TargetOrigin::Pinned,
            bound_by: None,
        }];
        let plant = simulate::plant("cpu").expect("built in");
        let args = args("--plant cpu --last 10min");
        let contest = contest(&args, "iris", &entity, &recorded(), plant).expect("a contest");
        assert_eq!(contest.policy.pinned_target, Some(3));
    }
}
