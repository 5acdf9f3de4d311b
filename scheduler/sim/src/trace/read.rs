//! Reads a trace line by line and puts it together: order, gaps, seconds.

use std::io::BufRead;

use super::clock::{Micros, SECOND};
use super::format::{EXPECTED, Format, recognise};
use super::{Fill, Kind, Trace, TraceMistake};

/// The longest line that any format has.
const LONGEST_LINE_BYTES: u64 = 1 << 20;
/// What a file may have.
pub(super) const LARGEST_BYTES: u64 = 1 << 30;
/// The longest time between its first and last line.
const LONGEST_DAYS: i64 = 400;
const LONGEST: Micros = LONGEST_DAYS * 86_400 * SECOND;
/// Rows of rates are kept until all are read.
const MOST_ROWS: usize = 35_000_000;
/// A gap: a distance between rows above both.
const GAP_TIMES: i64 = 10;
const GAP_AT_LEAST: Micros = 60 * SECOND;
/// The last row holds for the usual distance, and no longer than this.
const LAST_HOLDS_AT_MOST: Micros = 60 * SECOND;

/// What a line says: when, and how many requests or how long one takes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    at: Micros,
    value: f64,
    line: u32,
}

/// Reads a trace. `file` is how mistakes call it.
pub(super) fn read(
    file: &str,
    mut input: impl BufRead,
    fill: Fill,
) -> Result<Trace, TraceReadError> {
    let mut reader = Reader {
        file,
        format: None,
        rows: Vec::new(),
        seconds: Seconds::default(),
        last: None,
        first_at: 0,
    };
    let mut line = Vec::new();
    let (mut number, mut bytes) = (0usize, 0u64);
    loop {
        line.clear();
        let mut limited = std::io::Read::take(&mut input, LONGEST_LINE_BYTES + 1);
        let length = limited.read_until(b'\n', &mut line)? as u64;
        if length == 0 {
            break;
        }
        number += 1;
        bytes += length;
        if length > LONGEST_LINE_BYTES {
            let problem = format!("the line has more than {LONGEST_LINE_BYTES} bytes: {EXPECTED}");
            return Err(reader.mistake(number, problem).into());
        }
        if bytes > LARGEST_BYTES {
            let problem = format!("the file goes on beyond {LARGEST_BYTES} bytes: expected less");
            return Err(reader.mistake(number, problem).into());
        }
        let text = String::from_utf8_lossy(&line);
        // Some editors put a mark before the first line.
        let text = text.trim_start_matches('\u{feff}').trim();
        if !text.is_empty() {
            reader.line(number, text)?;
        }
    }
    Ok(reader.finish(number, fill)?)
}

/// Reading failed, or what was read is wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum TraceReadError {
    #[error(transparent)]
    Mistake(#[from] TraceMistake),
    #[error(transparent)]
    Read(#[from] std::io::Error),
}

struct Reader<'a> {
    file: &'a str,
    format: Option<Format>,
    rows: Vec<Row>,
    seconds: Seconds,
    last: Option<Micros>,
    first_at: Micros,
}

/// Events counted by second.
#[derive(Default)]
struct Seconds {
    trace: Option<Trace>,
    /// Of the second that is being counted.
    count: f64,
    service_s: f64,
}

impl Reader<'_> {
    fn mistake(&self, line: usize, problem: impl Into<String>) -> TraceMistake {
        TraceMistake {
            file: self.file.to_owned(),
            line,
            problem: problem.into(),
        }
    }

    fn line(&mut self, number: usize, text: &str) -> Result<(), TraceMistake> {
        let format = match self.format {
            Some(format) => format,
            None => {
                let format = recognise(text).map_err(|problem| self.mistake(number, problem))?;
                self.format = Some(format);
                match format {
                    Format::Rows(_) | Format::Periods | Format::Tokens => return Ok(()),
                    Format::JsonLog | Format::CombinedLog => format,
                }
            }
        };
        let said = format.line(text);
        let (at, value) = said.map_err(|problem| self.mistake(number, problem))?;
        self.in_order(number, format, at)?;
        match format {
            Format::Rows(_) | Format::Periods => {
                if self.rows.len() == MOST_ROWS {
                    let problem = format!("more than {MOST_ROWS} rows: expected fewer");
                    return Err(self.mistake(number, problem));
                }
                self.rows.push(Row {
                    at,
                    value,
                    line: u32::try_from(number).unwrap_or(u32::MAX),
                });
            }
            Format::Tokens => self.event(at, Some(value)),
            Format::JsonLog | Format::CombinedLog => self.event(at, None),
        }
        Ok(())
    }

    fn in_order(&mut self, number: usize, format: Format, at: Micros) -> Result<(), TraceMistake> {
        let Some(last) = self.last.replace(at) else {
            self.first_at = at;
            return Ok(());
        };
        let back = (last - at) as f64 / SECOND as f64;
        let rows = matches!(format, Format::Rows(_) | Format::Periods);
        if at < last {
            let problem = format!(
                "its time lies {back} s before that of the line before: expected lines sorted by time"
            );
            return Err(self.mistake(number, problem));
        }
        if at == last && rows {
            let problem =
                "its time is that of the line before: expected each time once, in ascending order";
            return Err(self.mistake(number, problem));
        }
        if at - self.first_at > LONGEST {
            let problem = format!(
                "it lies more than {LONGEST_DAYS} days after the first: expected a shorter trace"
            );
            return Err(self.mistake(number, problem));
        }
        Ok(())
    }

    /// A request that came at a moment, and how long it takes where that is known.
    fn event(&mut self, at: Micros, service_s: Option<f64>) {
        let name = self.file;
        let second = ((at - self.first_at) / SECOND) as u32;
        let seconds = &mut self.seconds;
        let trace = seconds
            .trace
            .get_or_insert_with(|| Trace::empty(name, Kind::Counts));
        if second > trace.length_s {
            seconds.end_second();
            let trace = seconds.trace.as_mut().expect("just made");
            trace.push_seconds(0.0, None, second - trace.length_s);
        }
        seconds.count += 1.0;
        seconds.service_s += service_s.unwrap_or(0.0);
    }

    fn finish(mut self, lines: usize, fill: Fill) -> Result<Trace, TraceMistake> {
        let Some(format) = self.format else {
            let problem = format!("the file is empty: {EXPECTED}");
            return Err(self.mistake(lines.max(1), problem));
        };
        if self.last.is_none() {
            let problem = "nothing follows the header: expected at least one line of traffic";
            return Err(self.mistake(lines, problem));
        }
        match format {
            Format::Rows(kind) => self.held(kind, fill),
            Format::Periods => self.counted(fill),
            Format::Tokens | Format::JsonLog | Format::CombinedLog => {
                self.seconds.end_second();
                Ok(self.seconds.trace.expect("there was an event"))
            }
        }
    }

    /// Rows whose value holds until the next.
    fn held(self, kind: Kind, fill: Fill) -> Result<Trace, TraceMistake> {
        let usual = self.without_gaps(fill, "the value before it holds through it")?;
        let mut trace = Trace::empty(self.file, kind);
        let mut seconds = Averaged::default();
        let last_holds = usual.clamp(SECOND, LAST_HOLDS_AT_MOST);
        for (i, row) in self.rows.iter().enumerate() {
            let until = self
                .rows
                .get(i + 1)
                .map_or(row.at + last_holds, |next| next.at);
            seconds.hold(&mut trace, row.value, until - row.at);
        }
        seconds.end(&mut trace);
        Ok(trace)
    }

    /// Rows of requests that came in a period each; a period without a row had none.
    fn counted(self, fill: Fill) -> Result<Trace, TraceMistake> {
        let usual = self.without_gaps(fill, "no requests came in it")?;
        let period = if self.rows.len() > 1 {
            usual.max(SECOND)
        } else {
            60 * SECOND
        };
        let mut trace = Trace::empty(self.file, Kind::Rate);
        let mut seconds = Averaged::default();
        for (i, row) in self.rows.iter().enumerate() {
            let until = self.rows.get(i + 1).map_or(row.at + period, |next| next.at);
            let covers = period.min(until - row.at);
            let rate = row.value * SECOND as f64 / covers as f64;
            seconds.hold(&mut trace, rate, covers);
            seconds.hold(&mut trace, 0.0, until - row.at - covers);
        }
        seconds.end(&mut trace);
        Ok(trace)
    }

    /// The usual distance between rows. A gap is a mistake unless it is to be filled.
    fn without_gaps(&self, fill: Fill, meaning: &str) -> Result<Micros, TraceMistake> {
        let mut distances: Vec<Micros> = self
            .rows
            .windows(2)
            .map(|pair| pair[1].at - pair[0].at)
            .collect();
        if distances.is_empty() {
            return Ok(SECOND);
        }
        let middle = (distances.len() - 1) / 2;
        let usual = *distances.select_nth_unstable(middle).1;
        let is_gap = |from: &Row, to: &Row| {
            let distance = to.at - from.at;
            distance > GAP_TIMES * usual && distance > GAP_AT_LEAST
        };
        let gaps = || {
            self.rows
                .windows(2)
                .filter(|pair| is_gap(&pair[0], &pair[1]))
        };
        match gaps().next() {
            Some(first) if fill == Fill::No => {
                let seconds = |span: Micros| span as f64 / SECOND as f64;
                let problem = format!(
                    "a gap of {} s before it, where rows usually lie {} s apart ({} such gaps in \
                     all): expected rows without gaps, or --fill, by which {meaning}",
                    seconds(first[1].at - first[0].at),
                    seconds(usual),
                    gaps().count(),
                );
                Err(self.mistake(first[1].line as usize, problem))
            }
            _ => Ok(usual),
        }
    }
}

impl Seconds {
    fn end_second(&mut self) {
        let Some(trace) = &mut self.trace else {
            return;
        };
        let service_s =
            (self.count > 0.0 && self.service_s > 0.0).then(|| self.service_s / self.count);
        trace.push_seconds(self.count, service_s, 1);
        self.count = 0.0;
        self.service_s = 0.0;
    }
}

/// Turns values that hold for any time into means over whole seconds.
#[derive(Default)]
struct Averaged {
    /// Of the second that is not full yet.
    filled: Micros,
    sum: f64,
}

impl Averaged {
    fn hold(&mut self, trace: &mut Trace, value: f64, mut span: Micros) {
        if self.filled > 0 {
            let part = span.min(SECOND - self.filled);
            self.add(trace, value, part);
            span -= part;
        }
        if span >= SECOND {
            trace.push_seconds(value, None, (span / SECOND) as u32);
            span %= SECOND;
        }
        if span > 0 {
            self.add(trace, value, span);
        }
    }

    fn add(&mut self, trace: &mut Trace, value: f64, part: Micros) {
        self.sum += value * part as f64;
        self.filled += part;
        if self.filled == SECOND {
            trace.push_seconds(self.sum / SECOND as f64, None, 1);
            *self = Self::default();
        }
    }

    /// What is left of a second becomes one.
    fn end(&mut self, trace: &mut Trace) {
        if self.filled > 0 {
            trace.push_seconds(self.sum / self.filled as f64, None, 1);
        }
    }
}
