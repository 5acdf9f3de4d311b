//! The formats of traces: which one a first line is of, and what a line of each says.

use serde_json::Value;

use super::Kind;
use super::clock::{self, Micros, SECOND};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `t_seconds,rps` and `t_seconds,concurrency`.
    Rows(Kind),
    /// `period,count`.
    Periods,
    /// `TIMESTAMP,ContextTokens,GeneratedTokens`.
    Tokens,
    JsonLog,
    CombinedLog,
}

/// Nobody's service gets more in a second.
const MOST_A_SECOND: f64 = 1e9;
/// Seconds that a request of a language model takes alone: 0.1 ms for each token that it brings (all
/// are worked on at once), 20 ms for each that it makes (one after the other).
pub const PREFILL_S_PER_TOKEN: f64 = 0.0001;
pub const DECODE_S_PER_TOKEN: f64 = 0.02;

/// What is said of a file that is none of these.
pub(super) const EXPECTED: &str = "expected a header `t_seconds,rps`, `t_seconds,concurrency`, `period,count` \
     or `TIMESTAMP,ContextTokens,GeneratedTokens`, or an access log in the combined format or of \
     JSON lines";
const EXPECTED_MOMENT: &str = "expected RFC 3339, such as 2024-05-01T10:00:00Z, or seconds or \
     milliseconds since 1970";
/// Keys under which a JSON line may say when, in the order they are looked for.
const KEYS: [&str; 4] = ["timestamp", "time", "ts", "@timestamp"];

impl Format {
    /// What a line says: when, and a rate, a count, or for tokens the seconds that the request takes
    /// alone. Otherwise what is wrong and what was expected.
    pub(super) fn line(self, text: &str) -> Result<(Micros, f64), String> {
        match self {
            Format::Rows(_) => rate(text),
            Format::Periods => period(text),
            Format::Tokens => tokens(text),
            Format::JsonLog => json(text).map(|at| (at, 1.0)),
            Format::CombinedLog => combined(text).map(|at| (at, 1.0)),
        }
    }
}

/// The format of a file by its first line.
pub(super) fn recognise(first: &str) -> Result<Format, String> {
    let columns: Vec<String> = fields(first).map(str::to_ascii_lowercase).collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    match columns.as_slice() {
        ["t_seconds", "rps"] => Ok(Format::Rows(Kind::Rate)),
        ["t_seconds", "concurrency"] => Ok(Format::Rows(Kind::Concurrency)),
        ["period" | "timestamp", "count"] => Ok(Format::Periods),
        ["timestamp", "contexttokens", "generatedtokens"] => Ok(Format::Tokens),
        _ if first.starts_with('{') => Ok(Format::JsonLog),
        _ if combined(first).is_ok() => Ok(Format::CombinedLog),
        _ => {
            let numbers = columns.iter().all(|column| column.parse::<f64>().is_ok());
            Err(if numbers {
                format!("there is no header: {EXPECTED}")
            } else {
                format!(
                    "{:?} is no known kind of trace: {EXPECTED}",
                    shortened(first)
                )
            })
        }
    }
}

fn fields(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(|field| field.trim().trim_matches('"'))
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

/// A line's fields, as many as the format has.
fn exactly<const N: usize>(text: &str, names: &str) -> Result<[String; N], String> {
    let found: Vec<String> = fields(text).map(str::to_owned).collect();
    let count = found.len();
    found
        .try_into()
        .map_err(|_| format!("it has {count} fields: expected {N}: {names}"))
}

/// A number that is finite, not negative and not absurd.
fn number(name: &str, text: &str) -> Result<f64, String> {
    let expected = "expected a number from 0 on";
    let value: f64 = text
        .parse()
        .map_err(|_| format!("{name} is {:?}: {expected}", shortened(text)))?;
    if !value.is_finite() || value < 0.0 {
        return Err(format!("{name} is {value}: {expected}"));
    }
    if value > MOST_A_SECOND {
        return Err(format!(
            "{name} is {value}: expected at most {MOST_A_SECOND}"
        ));
    }
    Ok(value)
}

fn rate(text: &str) -> Result<(Micros, f64), String> {
    let [time, value] = exactly(text, "t_seconds and a value")?;
    // An origin may lie anywhere: seconds since 1970 are fine.
    let seconds: f64 = time.parse().map_err(|_| {
        format!(
            "t_seconds is {:?}: expected a number from 0 on",
            shortened(&time)
        )
    })?;
    if !(0.0..1e11).contains(&seconds) {
        return Err(format!(
            "t_seconds is {seconds}: expected a number from 0 to 1e11"
        ));
    }
    let at = (seconds * SECOND as f64).round() as Micros;
    Ok((at, number("the value", &value)?))
}

fn period(text: &str) -> Result<(Micros, f64), String> {
    let [time, count] = exactly(text, "when and how many")?;
    let at = clock::rfc3339(&time)
        .or_else(|| time.parse().ok().and_then(clock::unix))
        .ok_or_else(|| format!("{:?} is no time: {EXPECTED_MOMENT}", shortened(&time)))?;
    Ok((at, number("the count", &count)?))
}

/// When, and how many seconds the request takes alone.
fn tokens(text: &str) -> Result<(Micros, f64), String> {
    let [time, context, generated] = exactly(text, "TIMESTAMP, ContextTokens and GeneratedTokens")?;
    let at = clock::rfc3339(&time)
        .ok_or_else(|| format!("{:?} is no time: {EXPECTED_MOMENT}", shortened(&time)))?;
    let context = number("ContextTokens", &context)?;
    let generated = number("GeneratedTokens", &generated)?;
    let service_s = context * PREFILL_S_PER_TOKEN + generated * DECODE_S_PER_TOKEN;
    // A request without a token is worked on for a moment too.
    Ok((at, service_s.max(PREFILL_S_PER_TOKEN)))
}

fn json(text: &str) -> Result<Micros, String> {
    let object: Value = serde_json::from_str(text)
        .map_err(|error| format!("no JSON object ({error}): expected one a line"))?;
    let (key, value) = KEYS
        .iter()
        .find_map(|key| Some((key, object.get(key)?)))
        .ok_or_else(|| {
            format!(
                "it does not say when: expected one of the keys {}",
                KEYS.join(", ")
            )
        })?;
    let at = match value {
        Value::Number(number) => number.as_f64().and_then(clock::unix),
        Value::String(text) => clock::rfc3339(text),
        _ => None,
    };
    at.ok_or_else(|| {
        let value = shortened(&value.to_string());
        format!("its {key} is {value}: {EXPECTED_MOMENT}")
    })
}

fn combined(text: &str) -> Result<Micros, String> {
    let moment = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(moment, _)| moment);
    moment.and_then(clock::combined).ok_or_else(|| {
        "it has no time in brackets: expected a line of the combined format, with a time such as \
         [10/Oct/2000:13:55:36 -0700]"
            .to_owned()
    })
}
