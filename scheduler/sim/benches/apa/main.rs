//! `make bench-apa`: what the autoscaler is to reach, and what it does reach. The table and all that it
//! was made from go to `target/bench/apa.json`.
//!
//! | argument | meaning |
//! | --- | --- |
//! | `--traces DIR` | every trace in this folder too |
//! | `--only TEXT` | combinations whose `trace/plant/start-up` contains it, and nothing else; may be repeated |
//! | `--part NAME` | one part: `knative`, `ramp`, `learning`, `noise`, `cost`, `pool`; may be repeated |
//! | `--start cold\\|knee\\|pinned` | what apa knows of a plant's knee in `knative` and `ramp` |
//! | `--seed N` | of all chance |

mod combos;
mod cost;
mod files;
mod knative;
mod learning;
mod noise;
mod pool;
mod ramp;
mod table;
mod watched;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use combos::Start;
use serde::Serialize;
use sim::trace::Trace;
use table::Target;

const THREADS: usize = 2;
const PARTS: [&str; 6] = ["knative", "ramp", "learning", "noise", "cost", "pool"];

#[derive(Debug)]
struct Asked {
    traces: Option<PathBuf>,
    only: Vec<String>,
    parts: Vec<String>,
    start: Start,
    seed: u64,
}

impl Asked {
    fn part(&self, name: &str) -> bool {
        if name == "knative" && !self.only.is_empty() {
            return true;
        }
        let all = self.parts.is_empty() && self.only.is_empty();
        all || self.parts.iter().any(|part| part == name)
    }
}

#[derive(Default, Serialize)]
struct Report {
    targets: Vec<Target>,
    combinations: Vec<knative::Row>,
    starts: Vec<learning::Start>,
}

fn main() -> std::process::ExitCode {
    let asked = match asked(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(wrong) => {
            eprintln!("error: {wrong}");
            return std::process::ExitCode::from(2);
        }
    };
    let report = measure(&asked);
    say(table::text(&report.targets));
    match write(&report) {
        Ok(path) => say(format!("written to {}", path.display())),
        Err(error) => {
            eprintln!("error: write the report: {error}");
            return std::process::ExitCode::FAILURE;
        }
    }
    std::process::ExitCode::SUCCESS
}

#[allow(clippy::print_stdout, reason = "a program whose result is its output")]
fn say(text: impl AsRef<str>) {
    println!("{}", text.as_ref());
}

fn measure(asked: &Asked) -> Report {
    let mut report = Report::default();
    let folder = asked.traces.as_deref();
    let files = folder.map_or_else(Vec::new, |folder| files::read(folder, say));
    if asked.part("knative") {
        let busiest: Vec<Trace> = files.iter().map(files::busiest).collect();
        let mut combos = combos::all(asked.start, asked.seed, &busiest);
        combos.retain(|it| {
            asked.only.is_empty() || asked.only.iter().any(|part| it.label().contains(part))
        });
        say(knative::head());
        report.combinations = on_all_threads(&combos, |combo| {
            let row = knative::row(combo);
            say(knative::line(&row));
            row
        });
        say(knative::means(&report.combinations));
        report
            .targets
            .extend(knative::targets(&report.combinations));
    }
    if asked.part("ramp") {
        report
            .targets
            .extend(ramp::targets(asked.start, asked.seed));
    }
    if asked.part("learning") {
        report.starts = on_all_threads(&learning::all(), |(plant, guess)| {
            let start = learning::start(plant, *guess, asked.seed);
            say(learning::line(&start));
            start
        });
        report.targets.extend(learning::targets(&report.starts));
    }
    if asked.part("noise") {
        report.targets.extend(noise::targets(asked.seed, say));
    }
    if asked.part("cost") {
        report.targets.extend(cost::targets());
    }
    if asked.part("pool") {
        report
            .targets
            .extend(pool::targets(&files, asked.seed, say));
    }
    report
}

/// Results are in the order of what they came from.
fn on_all_threads<T: Sync, R: Send>(all: &[T], one: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(it) = all.get(n) else { return };
                    let result = one(it);
                    done.lock().expect("no thread panics").push((n, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no thread panics");
    done.sort_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, result)| result).collect()
}

fn write(report: &Report) -> std::io::Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(workspace.join("target"), Into::into);
    let folder = target.join("bench");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("apa.json");
    std::fs::write(&path, serde_json::to_vec_pretty(report)?)?;
    path.canonicalize()
}

fn asked(mut words: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut asked = Asked {
        traces: None,
        only: Vec::new(),
        parts: Vec::new(),
        start: Start::Cold,
        seed: 1,
    };
    while let Some(word) = words.next() {
        if word == "--bench" {
            // What `cargo bench` says to every bench.
            continue;
        }
        let value = words
            .next()
            .ok_or_else(|| format!("{word}: expected a value after it"))?;
        match word.as_str() {
            "--traces" => asked.traces = Some(value.into()),
            "--only" => asked.only.push(value),
            "--part" if PARTS.contains(&value.as_str()) => asked.parts.push(value),
            "--part" => return Err(format!("--part {value}: expected one of {PARTS:?}")),
            "--seed" => {
                let seed = value.parse();
                asked.seed =
                    seed.map_err(|_| format!("--seed {value}: expected a whole number"))?;
            }
            "--start" => {
                asked.start = match value.as_str() {
                    "cold" => Start::Cold,
                    "knee" => Start::Knee,
                    "pinned" => Start::Pinned,
                    _ => return Err(format!("--start {value}: expected cold, knee or pinned")),
                }
            }
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    Ok(asked)
}
