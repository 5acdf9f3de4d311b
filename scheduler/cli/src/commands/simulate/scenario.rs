//! Traffic, plant and policies, as the command line names them.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::Context as _;
use sim::compare::Contest;
use sim::engine::{Options, Scenario};
use sim::fit::{self, Fit};
use sim::plant::Plant;
use sim::record::Recording;
use sim::synth::Shape;
use sim::trace::{self, Fill, Kind, Trace};

use super::{SimulateArgs, Synthetic, usage};

/// A plant's file is a page of text.
const LARGEST_PLANT_BYTES: u64 = 1 << 20;

pub(super) fn contest(args: &SimulateArgs) -> anyhow::Result<Contest> {
    let asked = &args.asked;
    let mut plant = match &args.fit {
        Some(recording) => fitted(recording)?.plant,
        None => plant(&args.plant)?,
    };
    if let Some(startup) = args.startup {
        plant = plant.with_startup(startup.0);
    }
    let trace = traffic(args)?;
    let lead_in_s = asked.lead_in.seconds().ceil() as u32;
    if lead_in_s >= trace.length_s {
        return Err(usage(format!(
            "--lead-in: {} leaves nothing to measure of a trace of {} s",
            asked.lead_in, trace.length_s
        )));
    }
    let least = u32::from(!asked.scale_to_zero);
    let min_replicas = asked.min_replicas.unwrap_or(least);
    if min_replicas > asked.max_replicas {
        return Err(usage("--min-replicas: more than --max-replicas"));
    }
    let policy = apa::Policy {
        min_replicas,
        max_replicas: asked.max_replicas,
        scale_to_zero: asked.scale_to_zero,
        provisioned_concurrency: asked.provisioned_concurrency,
        latency_objective: asked.latency_objective.map(|it| it.0),
        startup: Some(std::time::Duration::from_secs_f64(plant.startup.mean_s)),
        pinned_target: asked.target_concurrency,
        initial_target: asked.initial_target,
        ..apa::Policy::default()
    };
    let options = Options {
        seed: args.seed,
        initial_replicas: min_replicas.max(1),
        lead_in_s,
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

fn traffic(args: &SimulateArgs) -> anyhow::Result<Trace> {
    if let Some(path) = &args.trace {
        let fill = if args.fill { Fill::Yes } else { Fill::No };
        return Ok(trace::open(path, fill)?);
    }
    let wanted = args
        .synthetic
        .ok_or_else(|| usage("whose traffic? Give --trace, --synthetic or --stdio"))?;
    let name = wanted.name();
    let shape = Shape::standard()
        .into_iter()
        .find(|(known, _)| *known == name);
    let (_, shape) = shape.with_context(|| format!("no shape is called {name}"))?;
    Ok(shape.trace(name, Kind::Rate, args.seed))
}

impl Synthetic {
    fn name(self) -> &'static str {
        match self {
            Synthetic::Step => "step",
            Synthetic::Ramp => "ramp",
            Synthetic::Sine => "sine",
            Synthetic::Diurnal => "diurnal",
            Synthetic::Bursts => "bursts",
            Synthetic::Flash => "flash-crowd",
        }
    }
}

/// The plant that behaves as a real endpoint did.
pub(super) fn fitted(path: &Path) -> anyhow::Result<Fit> {
    let file = path.display().to_string();
    let opened = File::open(path).with_context(|| format!("read {file}"))?;
    let recording = Recording::read(&file, BufReader::new(opened))?;
    fit::fit(&file, &recording, None).with_context(|| format!("fit a plant to {file}"))
}

/// A plant by its name, or from its file.
pub(crate) fn plant(name: &str) -> anyhow::Result<Plant> {
    if let Some(plant) = Plant::built_in(name) {
        return Ok(plant);
    }
    let path = Path::new(name);
    let reading = || format!("read {name}, which is not one of the plants cpu, gpu and io");
    let size = std::fs::metadata(path).with_context(reading)?.len();
    if size > LARGEST_PLANT_BYTES {
        anyhow::bail!("{name} has {size} bytes: expected a plant's file, of at most 1 MiB");
    }
    let bytes = std::fs::read(path).with_context(reading)?;
    Ok(Plant::parse(name, &bytes)?)
}
