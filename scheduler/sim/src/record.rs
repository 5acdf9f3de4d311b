//! Recordings of a real endpoint: one JSON object a line, one line a second.
//!
//! ```json
//! {"t":12,"active":31.0,"queued":4.0,"arrivals":55,"completions":52,"rejected":0,
//!  "replicas_ready":3,"replicas_starting":1,"groups":[{"class":"cpu","exploring":false,"replicas":3,
//!  "active":31.0,"completions":52,"p50_ms":40.1,"p95_ms":80.2,"resources":{"cpu":0.71}}]}
//! ```
//! (on one line). `t` is in seconds from any origin and grows; the rest is a second of a served
//! entity as the autoscaler was given it. A second without a line is one of which nothing is known.

use std::io::{BufRead, Read as _, Write};

use apa::Sample;
use serde::{Deserialize, Serialize};

use crate::trace::{Fill, Kind, Trace, TraceError, TraceMistake};

/// What was measured of a served entity, second by second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recording {
    /// In order of time, each second once.
    pub seconds: Vec<Second>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Seconds from the recording's origin.
    pub t: u64,
    #[serde(flatten)]
    pub sample: Sample,
}

/// The longest line: thousands of groups.
const LONGEST_LINE_BYTES: u64 = 1 << 20;
/// About three weeks.
const MOST_SECONDS: usize = 2_000_000;
/// As long as a trace may be.
const LONGEST_S: u64 = 400 * 86_400;
/// A second without a line takes its neighbour's arrivals; a longer silence is a gap.
const GAP_AFTER_S: u64 = 60;

impl Recording {
    /// Reads a recording. `file` is how mistakes call it.
    pub fn read(file: &str, mut input: impl BufRead) -> Result<Recording, TraceError> {
        let mut seconds: Vec<Second> = Vec::new();
        let mut line = Vec::new();
        let mut number = 0;
        let mistake = |line, problem: String| TraceMistake {
            file: file.to_owned(),
            line,
            problem,
        };
        loop {
            line.clear();
            let mut limited = (&mut input).take(LONGEST_LINE_BYTES + 1);
            let length =
                limited
                    .read_until(b'\n', &mut line)
                    .map_err(|source| TraceError::Read {
                        file: file.to_owned(),
                        source,
                    })?;
            if length == 0 {
                break;
            }
            number += 1;
            if length as u64 > LONGEST_LINE_BYTES {
                let problem = format!(
                    "the line has more than {LONGEST_LINE_BYTES} bytes: expected a second of samples"
                );
                return Err(mistake(number, problem).into());
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let second = second(&line, seconds.first(), seconds.last())
                .map_err(|problem| mistake(number, problem))?;
            if seconds.len() == MOST_SECONDS {
                let problem = format!("more than {MOST_SECONDS} seconds: expected fewer");
                return Err(mistake(number, problem).into());
            }
            seconds.push(second);
        }
        if seconds.is_empty() {
            let problem = "the recording is empty: expected one JSON object a line, such as \
                           {\"t\":0,\"active\":3.0,...}";
            return Err(mistake(number.max(1), problem.into()).into());
        }
        Ok(Recording { seconds })
    }

    pub fn write(&self, mut output: impl Write) -> std::io::Result<()> {
        for second in &self.seconds {
            serde_json::to_writer(&mut output, second)?;
            output.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Its arrivals as a trace: as many again in each second. Silent seconds take the arrivals of the
    /// one before; a silence of more than a minute is a mistake unless gaps are to be filled.
    pub fn trace(&self, name: &str, fill: Fill) -> Result<Trace, TraceMistake> {
        let mut trace = Trace::empty(name, Kind::Counts);
        for (i, second) in self.seconds.iter().enumerate() {
            let next = self.seconds.get(i + 1).map_or(second.t + 1, |next| next.t);
            let lasts = next - second.t;
            if lasts > GAP_AFTER_S && fill == Fill::No {
                return Err(TraceMistake {
                    file: name.to_owned(),
                    line: i + 2,
                    problem: format!(
                        "a gap of {lasts} s before it: expected a line for each second, or --fill, \
                         by which the arrivals of the second before it hold through it"
                    ),
                });
            }
            trace.push_seconds(second.sample.arrivals.round(), None, lasts as u32);
        }
        Ok(trace)
    }
}

fn second(line: &[u8], first: Option<&Second>, last: Option<&Second>) -> Result<Second, String> {
    let Second { t, sample } = serde_json::from_slice(line)
        .map_err(|error| format!("no second of samples ({error}): expected a JSON object"))?;
    let sample = sample
        .checked()
        .ok_or("active or queued is no number from 0 on: expected both")?;
    if let Some(last) = last.filter(|last| t <= last.t) {
        let problem = format!(
            "its t is {t} after {}: expected each second once, in ascending order",
            last.t
        );
        return Err(problem);
    }
    if first.is_some_and(|first| t - first.t > LONGEST_S) {
        return Err(
            "it lies more than 400 days after the first: expected a shorter recording".into(),
        );
    }
    Ok(Second { t, sample })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(t: u64, arrivals: f64) -> Second {
        let sample = Sample {
            active: 2.5,
            arrivals,
            replicas_ready: 2,
            groups: vec![apa::Group {
                replicas: 2,
                active: 2.5,
                p50_ms: Some(40.25),
                ..apa::Group::default()
            }],
            ..Sample::default()
        };
        Second { t, sample }
    }

    fn read(text: &str) -> Result<Recording, String> {
        Recording::read("r.jsonl", text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_back_as_it_was() {
        let recording = Recording {
            seconds: vec![at(100, 3.0), at(101, 4.0)],
        };
        let mut text = Vec::new();
        recording.write(&mut text).expect("to memory");
        let text = String::from_utf8(text).expect("JSON");
        assert!(text.starts_with("{\"t\":100,\"active\":2.5,"), "{text}");
        assert_eq!(read(&text), Ok(recording));
    }

    #[test]
    fn its_arrivals_are_a_trace_and_a_silence_is_held_or_told() {
        let recording = Recording {
            seconds: vec![at(7, 3.0), at(9, 4.0), at(100, 1.0)],
        };
        let gap = recording.trace("r.jsonl", Fill::No).expect_err("a gap");
        assert!(
            gap.to_string()
                .starts_with("r.jsonl:3: a gap of 91 s before it")
        );
        let trace = recording.trace("r.jsonl", Fill::Yes).expect("filled");
        let values: Vec<f64> = trace.by_second().map(|it| it.value).collect();
        assert_eq!(
            (values.len(), &values[..4]),
            (94, &[3.0, 3.0, 4.0, 4.0][..])
        );
    }

    #[test]
    fn a_mistake_names_its_line() {
        let mut text = Vec::new();
        let recording = Recording {
            seconds: vec![at(7, 3.0)],
        };
        recording.write(&mut text).expect("to memory");
        let line = String::from_utf8(text).expect("JSON");
        for (text, expected) in [
            (String::new(), "r.jsonl:1: the recording is empty: expected"),
            (
                "{}\n".into(),
                "r.jsonl:1: no second of samples (missing field",
            ),
            (
                format!("{line}{line}"),
                "r.jsonl:2: its t is 7 after 7: expected each second once",
            ),
            (
                line.replace("2.5", "-2.5"),
                "r.jsonl:1: active or queued is no number from 0 on",
            ),
        ] {
            let refused = read(&text).expect_err("a mistake");
            assert!(refused.starts_with(expected), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Recording::read("r.jsonl", bytes.as_slice());
        }
    }
}
