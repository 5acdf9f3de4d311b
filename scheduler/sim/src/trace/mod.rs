//! Traffic over time: what came, or how often, second by second.
//!
//! A trace is read from a file ([`open`]), whose format is recognised by its first line; each mistake
//! is told with its line, and nothing is guessed. It is made here as well: see `synth`.

mod clock;
mod format;
mod read;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

pub use format::{DECODE_S_PER_TOKEN, PREFILL_S_PER_TOKEN};

/// Whether gaps between rows are filled. Filled, the value before one holds through it; where rows
/// count requests, none came in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    /// A gap is a mistake.
    #[default]
    No,
    Yes,
}

/// What is wrong in a trace, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct TraceMistake {
    pub file: String,
    /// From 1.
    pub line: usize,
    pub problem: String,
}

/// A trace could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("read {file}")]
    Read {
        file: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Mistake(#[from] TraceMistake),
}

/// Reads a trace from a file of at most 1 GiB and 400 days.
pub fn open(path: &Path, fill: Fill) -> Result<Trace, TraceError> {
    let file = path.display().to_string();
    let reading = |source| TraceError::Read {
        file: file.clone(),
        source,
    };
    let opened = File::open(path).map_err(reading)?;
    let size = opened.metadata().map_err(reading)?.len();
    if size > read::LARGEST_BYTES {
        let problem = format!(
            "the file has {size} bytes: expected at most {}",
            read::LARGEST_BYTES
        );
        let line = 1;
        return Err(TraceMistake {
            file,
            line,
            problem,
        }
        .into());
    }
    parse(&file, BufReader::new(opened), fill)
}

/// Reads a trace. `file` is how mistakes call it.
pub fn parse(file: &str, input: impl BufRead, fill: Fill) -> Result<Trace, TraceError> {
    read::read(file, input, fill).map_err(|error| match error {
        read::TraceReadError::Mistake(mistake) => TraceError::Mistake(mistake),
        read::TraceReadError::Read(source) => TraceError::Read {
            file: file.to_owned(),
            source,
        },
    })
}

/// A whole trace. It starts at second 0 and its segments lie in order without holes.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    pub name: String,
    pub kind: Kind,
    pub segments: Vec<Segment>,
    /// Where the last segment ends.
    pub length_s: u32,
}

/// What the segments' values mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Requests a second that are to be expected: arrivals are drawn around it.
    Rate,
    /// Requests that came in each second: they come again, no more and no fewer.
    Counts,
    /// Requests at once where nothing slows them: arrivals are drawn so that they keep that many at
    /// work, each for the plant's time at low load.
    Concurrency,
}

/// A value that holds from a second until the next segment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    pub from_s: u32,
    pub value: f64,
    /// Seconds that a request takes alone; `None`: as long as the plant says.
    pub service_s: Option<f64>,
}

impl Trace {
    /// The segment that holds in each second, from second 0 on.
    pub fn by_second(&self) -> impl Iterator<Item = &Segment> {
        let ends = self.segments.iter().skip(1).map(|next| next.from_s);
        let ends = ends.chain([self.length_s]);
        self.segments.iter().zip(ends).flat_map(|(segment, end)| {
            std::iter::repeat_n(segment, end.saturating_sub(segment.from_s) as usize)
        })
    }

    /// Adds a second with this value.
    pub(crate) fn push_second(&mut self, value: f64, service_s: Option<f64>) {
        self.push_seconds(value, service_s, 1);
    }

    /// Adds seconds with these values; equal neighbours become one segment.
    pub(crate) fn push_seconds(&mut self, value: f64, service_s: Option<f64>, seconds: u32) {
        if seconds == 0 {
            return;
        }
        let same = |last: &Segment| last.value == value && last.service_s == service_s;
        if !self.segments.last().is_some_and(same) {
            self.segments.push(Segment {
                from_s: self.length_s,
                value,
                service_s,
            });
        }
        self.length_s += seconds;
    }

    pub(crate) fn empty(name: &str, kind: Kind) -> Trace {
        Trace {
            name: name.to_owned(),
            kind,
            segments: Vec::new(),
            length_s: 0,
        }
    }
}

#[cfg(test)]
mod tests;
