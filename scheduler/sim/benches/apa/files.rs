//! Traces of a folder, as they are.

use std::path::{Path, PathBuf};

use sim::trace::{self, Fill, Segment, Trace};

/// Longer ones are cut to so much around their busiest minute: every policy setting runs through it.
const LONGEST_S: u32 = 86_400;
const BUSY_S: u32 = 60;

/// Reads what can be read; `told` gets the rest with the reason.
pub(crate) fn read(folder: &Path, told: impl Fn(String)) -> Vec<Trace> {
    let mut traces = Vec::new();
    for path in files(folder) {
        match trace::open(&path, Fill::Yes) {
            Ok(mut trace) => {
                let name = path.file_stem().unwrap_or_default();
                trace.name = name.to_string_lossy().into_owned();
                let (length_s, used_s) = (trace.length_s, trace.length_s.min(LONGEST_S));
                told(format!(
                    "{}: {length_s} s, of which policies meet {used_s} s",
                    path.display()
                ));
                traces.push(trace);
            }
            Err(error) => told(format!("left out {}: {error}", path.display())),
        }
    }
    traces
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(files(&path));
        } else if path
            .extension()
            .is_some_and(|it| it == "csv" || it == "log" || it == "jsonl")
        {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What policies meet of a trace.
pub(crate) fn busiest(trace: &Trace) -> Trace {
    if trace.length_s <= LONGEST_S {
        return trace.clone();
    }
    let values: Vec<f64> = trace.by_second().map(|it| it.value).collect();
    let minutes = values
        .chunks(BUSY_S as usize)
        .map(|it| it.iter().sum::<f64>());
    let busiest = minutes.enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
    let at_s = busiest.map_or(0, |(minute, _)| minute as u32 * BUSY_S);
    let from_s = at_s
        .saturating_sub(LONGEST_S / 2)
        .min(trace.length_s - LONGEST_S);
    let seconds = trace
        .by_second()
        .skip(from_s as usize)
        .take(LONGEST_S as usize);
    let segments = (0..).zip(seconds).map(|(t, segment)| Segment {
        from_s: t,
        ..*segment
    });
    Trace {
        name: trace.name.clone(),
        kind: trace.kind,
        segments: segments.collect(),
        length_s: LONGEST_S,
    }
}
