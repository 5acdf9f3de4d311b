//! `stokehold simulate`: what each autoscaler would have done with given traffic. Needs no server.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `lines` | `--stdio`: an outside program owns the plant |
//! | `scenario` | traffic, plant and policies from the command line |
//! | `shown` | the result as a table or JSON |
//! | `picture` | the result over time, as SVG or HTML. Pure |

mod lines;
mod picture;
mod scenario;
mod shown;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use sim::compare::{Best, Contest, Name};
use sim::engine::Outcome;
use sim::measure::Measures;
use sim::policy::kpa::Settings;
use sim::span::Span;

use crate::exit::Stop;
use crate::output::Output;
pub(crate) use scenario::plant;

const EXAMPLES: &str = "\
Examples:
  stokehold simulate --synthetic step
  stokehold simulate --trace access.log --plant gpu --startup 60s --policy apa,kpa,kpa-best
  stokehold simulate --trace day.csv --plot day.html --output json > day.json
  stokehold simulate --fit recorded.jsonl > plant.toml
  stokehold simulate --stdio < seconds.jsonl

A trace is CSV with the header t_seconds,rps or t_seconds,concurrency, the Azure LLM format
(TIMESTAMP,ContextTokens,GeneratedTokens), or an access log: combined format, or JSON lines with a
timestamp. A plant is cpu, gpu, io or a file; docs/simulator.md has its format.

Every policy meets the same arrivals and the same replicas. apa is what this product runs; kpa is
Knative untuned, kpa-tuned knows the plant's true knee, kpa-best is Knative's cheapest setting in
hindsight with no more excess than apa; hpa is Kubernetes', ray is Ray Serve's.";

/// Enough for a picture of any width, few enough for any length of trace.
const SERIES_POINTS: u32 = 1800;
/// Policies that run at the same time.
const THREADS: usize = 2;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("traffic").args(["trace", "synthetic", "stdio"])))]
pub(crate) struct SimulateArgs {
    /// File with the traffic.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Traffic that is made here.
    #[arg(long, value_enum, value_name = "SHAPE")]
    synthetic: Option<Synthetic>,
    /// An outside program owns the plant: one line of JSON in and one out for every second.
    #[arg(long)]
    stdio: bool,
    /// Policies to compare, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "apa,kpa,kpa-tuned")]
    #[arg(value_name = "NAME,..")]
    policy: Vec<Name>,
    /// What a replica is: cpu, gpu, io or a file.
    #[arg(long, value_name = "NAME|FILE", default_value = "cpu")]
    plant: String,
    /// Fit the plant to a recorded run of a real endpoint; without traffic, show it as a plant's file.
    #[arg(long, value_name = "RECORDING", conflicts_with = "plant")]
    fit: Option<PathBuf>,
    /// From wanted to ready. Default: what the plant says.
    #[arg(long, value_name = "TIME")]
    startup: Option<Span>,
    /// Of all chance: the same seed gives the same arrivals.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Fill gaps in the trace with the value before them, instead of refusing it.
    #[arg(long)]
    fill: bool,
    /// Draw the result over time.
    #[arg(long, value_name = "FILE.svg|FILE.html")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    asked: Asked,
}

/// What an operator would ask of the endpoint.
#[derive(Debug, Args)]
#[command(next_help_heading = "The endpoint")]
struct Asked {
    /// Default: 1; 0 with --scale-to-zero.
    #[arg(long, value_name = "N")]
    min_replicas: Option<u32>,
    #[arg(long, value_name = "N", default_value_t = 200)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    max_replicas: u32,
    /// No replica stays where nothing comes.
    #[arg(long)]
    scale_to_zero: bool,
    /// Requests at once that are always provided for (apa).
    #[arg(long, value_name = "N", default_value_t = 0)]
    provisioned_concurrency: u32,
    /// The p95 of a request's time in the replica that is to hold (apa).
    #[arg(long, value_name = "TIME")]
    latency_objective: Option<Span>,
    /// Fix target_concurrency instead of learning it (apa).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    target_concurrency: Option<u32>,
    /// A first guess at target_concurrency (apa).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    initial_target: Option<u32>,
    /// So much at the start is simulated and not measured.
    #[arg(long, value_name = "TIME", default_value = "0s")]
    lead_in: Span,
}

/// The shapes of `sim::synth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Synthetic {
    Step,
    Ramp,
    Sine,
    Diurnal,
    Bursts,
    #[value(alias = "flash-crowd")]
    Flash,
}

/// One policy's run.
struct Entry {
    outcome: Outcome,
    /// The setting that won, for `kpa-best`.
    best: Option<Winner>,
}

#[derive(Clone, Copy)]
struct Winner {
    settings: Settings,
    /// `false`: none has as little excess as apa.
    reaches: bool,
}

pub(crate) fn run(args: &SimulateArgs, output: &Output) -> anyhow::Result<()> {
    if args.stdio {
        return lines::talk(&mut std::io::stdin().lock(), &mut std::io::stdout().lock());
    }
    if let (Some(recording), None, None) = (&args.fit, &args.trace, args.synthetic) {
        let fit = scenario::fitted(recording)?;
        output.note(shown::fitted(&fit));
        return output.raw(fit.plant.to_toml().as_bytes());
    }
    let picture = Picture::at(args.plot.as_deref())?;
    let contest = scenario::contest(args)?;
    play(contest, &args.policy, &picture, output)?.show(output)
}

/// Where a picture is to be drawn, if anywhere, by a name that says how.
pub(crate) struct Picture<'a>(Option<(&'a Path, picture::Kind)>);

impl<'a> Picture<'a> {
    pub(crate) fn at(path: Option<&'a Path>) -> anyhow::Result<Self> {
        let drawn = path.map(|path| anyhow::Ok((path, picture::Kind::of(path)?)));
        Ok(Self(drawn.transpose()?))
    }
}

/// What policies came to.
pub(crate) struct Played {
    contest: Contest,
    entries: Vec<Entry>,
}

impl Played {
    pub(crate) fn measures(&self) -> Vec<&Measures> {
        let entries = self.entries.iter();
        entries.map(|entry| &entry.outcome.measures).collect()
    }

    pub(crate) fn show(&self, output: &Output) -> anyhow::Result<()> {
        shown::show(&self.contest, &self.entries, output)
    }
}

/// Runs policies, and draws what became of them.
pub(crate) fn play(
    mut contest: Contest,
    policies: &[Name],
    picture: &Picture<'_>,
    output: &Output,
) -> anyhow::Result<Played> {
    if picture.0.is_some() {
        contest.scenario.options.series_points = SERIES_POINTS;
    }
    let entries = compare(&contest, &names(policies), output);
    if let Some((path, kind)) = picture.0 {
        let text = picture::text(kind, &contest.scenario, &entries);
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(Played { contest, entries })
}

/// Each once, as they were asked for.
fn names(asked: &[Name]) -> Vec<Name> {
    let mut names = Vec::new();
    for name in asked {
        if !names.contains(name) {
            names.push(*name);
        }
    }
    names
}

fn compare(contest: &Contest, names: &[Name], output: &Output) -> Vec<Entry> {
    let progress = output.count_progress("simulating", names.len() as u64);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(outcome) = contest.run(*name) {
                done.push((*name, outcome));
                progress.advance(1);
            }
        }
        done
    };
    let mut outcomes: Vec<(Name, Outcome)> = std::thread::scope(|scope| {
        let threads = [(); THREADS].map(|()| scope.spawn(work));
        let done = threads
            .into_iter()
            .map(|it| it.join().expect("no policy panics"));
        done.flatten().collect()
    });
    let mut best = names.contains(&Name::KpaBest).then(|| {
        progress.status("searching Knative's settings");
        let apa = outcomes.iter().find(|(name, _)| *name == Name::Apa);
        let excess_share = match apa {
            Some((_, apa)) => apa.measures.excess_share,
            None => contest.apa().measures.excess_share,
        };
        contest.kpa_best(excess_share, true, &|| progress.grow(1))
    });
    let mut entry = |name: &Name| {
        let found = outcomes.iter().position(|(known, _)| known == name);
        match found {
            Some(found) => Some(Entry {
                outcome: outcomes.swap_remove(found).1,
                best: None,
            }),
            None => best.take().map(Entry::from),
        }
    };
    names.iter().filter_map(&mut entry).collect()
}

impl From<Best> for Entry {
    fn from(best: Best) -> Self {
        Self {
            outcome: best.outcome,
            best: Some(Winner {
                settings: best.settings,
                reaches: best.reaches,
            }),
        }
    }
}

fn usage(text: impl Into<String>) -> anyhow::Error {
    Stop::Usage(text.into()).into()
}

#[cfg(test)]
mod tests;
