//! Words for what is wrong in a text that somebody wrote: a configuration file, a request's body.
//!
//! serde says `unknown field`, `invalid type` and `expected u64`; people are told what was found, what
//! is wanted with an example, and which name they may have meant. Pure, and never panics: a message
//! that is not understood is passed on as it is.

/// The name among `known` that `written` was probably meant to be.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_ascii_lowercase();
    let allowed = (written.chars().count() / 3).max(1);
    known
        .into_iter()
        .filter_map(|name| {
            let distance = distance(&written, name);
            if distance <= allowed {
                return Some((distance, name));
            }
            // `lease` for `lease_seconds`, `listen_address` for `listen`.
            let whole_words = |long: &str, short: &str| {
                short.len() >= 3
                    && (long.starts_with(&format!("{short}_"))
                        || long.ends_with(&format!("_{short}")))
            };
            (whole_words(name, &written) || whole_words(&written, name))
                .then_some((allowed + 1, name))
        })
        .min()
        .map(|(_, name)| name)
}

/// The name among `known` of which `written` is a misspelling: only a few letters apart.
pub fn misspelt<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (written.chars().count() / 4).max(1);
    known
        .into_iter()
        .map(|name| (distance(written, name), name))
        .filter(|(distance, _)| (1..=allowed).contains(distance))
        .min()
        .map(|(_, name)| name)
}

/// Letters to change, add, drop or swap with a neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j - 1] + same)
                .min(rows[i - 1][j] + 1)
                .min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// The names that serde's message about an unknown field lists; `None` for another message.
pub fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (written, rest) = rest.split_once('`')?;
    let known = rest.split('`').skip(1).step_by(2).collect();
    Some((written, known))
}

/// The variants that serde's message about an unknown one lists.
fn unknown_variant(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown variant `")?;
    let (written, rest) = rest.split_once('`')?;
    let known = rest.split('`').skip(1).step_by(2).collect();
    Some((written, known))
}

/// What to say of a name that nobody knows.
pub fn of_unknown(written: &str, known: &[&str]) -> String {
    match nearest(written, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if known.is_empty() => "nothing can be set here".to_owned(),
        None => format!("known are {}", listed(known)),
    }
}

/// How the text is written that examples are given in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    Toml,
    Json,
}

/// serde's message about the value of `key`, for people; line and column at its end are dropped.
pub fn of_value(key: &str, message: &str, notation: Notation) -> String {
    let message = without_position(message);
    if let Some((written, known)) = unknown_variant(message) {
        return format!("{written:?} is not known here: expected {}", one_of(&known));
    }
    let missing = message.strip_prefix("missing field `");
    if let Some(field) = missing.and_then(|rest| rest.strip_suffix('`')) {
        return format!("the field `{field}` is missing");
    }
    let parts = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .and_then(|rest| rest.split_once(", expected "));
    let Some((found, expected)) = parts else {
        return message.to_owned();
    };
    let wanted = wanted(key, expected, found, notation);
    format!("found {}, expected {wanted}", found_in_words(found))
}

fn without_position(message: &str) -> &str {
    let Some((before, after)) = message.rsplit_once(" at line ") else {
        return message;
    };
    let is_position = after.split(" column ").all(|n| n.parse::<u64>().is_ok());
    if is_position { before } else { message }
}

fn found_in_words(found: &str) -> String {
    let quoted = |prefix: &str| {
        let rest = found.strip_prefix(prefix)?;
        rest.strip_prefix('`')?.strip_suffix('`')
    };
    if let Some(text) = found.strip_prefix("string ") {
        format!("the text {text}")
    } else if let Some(number) = quoted("integer ").or_else(|| quoted("floating point ")) {
        format!("the number {number}")
    } else if let Some(value) = quoted("boolean ") {
        value.to_owned()
    } else {
        match found {
            "sequence" => "a list",
            "map" => "a table",
            "unit value" | "null" => "null",
            other => other,
        }
        .to_owned()
    }
}

fn wanted(key: &str, expected: &str, found: &str, notation: Notation) -> String {
    let example = |value: &str| match notation {
        Notation::Toml => format!("such as {key} = {value}"),
        Notation::Json => format!("such as \"{key}\": {value}"),
    };
    let path = match notation {
        Notation::Toml => r#""/var/lib/example""#,
        Notation::Json => r#""text""#,
    };
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" | "i32" | "i64" | "isize" => {
            let (unit, seconds_each) = unit_of(key);
            let value = found
                .strip_prefix("string ")
                .and_then(|text| in_unit(text.trim_matches('"'), seconds_each?))
                .unwrap_or_else(|| "30".to_owned());
            format!("a whole number{unit}, {}", example(&value))
        }
        "f32" | "f64" => format!("a number, {}", example("0.5")),
        "a boolean" => format!("true or false, {}", example("true")),
        "a string" if key.ends_with("listen") => {
            format!("an address with a port, {}", example("\"127.0.0.1:7443\""))
        }
        "a string" => format!("a text, {}", example("\"text\"")),
        "path string" => format!("a path in quotes, {}", example(path)),
        "socket address" | "a socket address" => {
            format!("an address with a port, {}", example("\"127.0.0.1:7443\""))
        }
        "a sequence" => match notation {
            Notation::Toml => format!("a list, {}", example("[\"one\", \"two\"]")),
            Notation::Json => format!("a list, {}", example("[...]")),
        },
        "a map" | "a table" => table(key, notation),
        other if other.starts_with("struct ") => table(key, notation),
        other => other.to_owned(),
    }
}

fn table(key: &str, notation: Notation) -> String {
    match notation {
        Notation::Toml => format!("a table: a line [{key}], and its keys below that"),
        Notation::Json => format!("an object, such as \"{key}\": {{...}}"),
    }
}

/// What a key's name says of its unit, and how many seconds one is.
fn unit_of(key: &str) -> (&'static str, Option<f64>) {
    if key.ends_with("_seconds") {
        (" of seconds", Some(1.0))
    } else if key.ends_with("_ms") {
        (" of milliseconds", Some(0.001))
    } else if key.ends_with("_bytes") {
        (" of bytes", None)
    } else if key.ends_with("_millis") {
        (" of thousandths", None)
    } else {
        ("", None)
    }
}

/// `2m` as a number of units.
fn in_unit(text: &str, seconds_each: f64) -> Option<String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let number: f64 = text[..split].parse().ok()?;
    let each = match text[split..].trim() {
        "ms" => 0.001,
        "s" | "sec" | "second" | "seconds" => 1.0,
        "m" | "min" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3600.0,
        _ => return None,
    };
    let units = number * each / seconds_each;
    (1.0..1e12)
        .contains(&units)
        .then(|| format!("{:.0}", units.round()))
}

fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

fn one_of(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    quoted.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_was_probably_meant_is_found() {
        let known = ["lease_seconds", "drain_deadline_seconds", "listen", "node"];
        let nearest = |written| nearest(written, known);
        assert_eq!(nearest("lease"), Some("lease_seconds"));
        assert_eq!(nearest("laese_seconds"), Some("lease_seconds"));
        assert_eq!(nearest("Listen"), Some("listen"));
        assert_eq!(nearest("listen_address"), Some("listen"));
        assert_eq!(nearest("ndoe"), Some("node"));
        assert_eq!(nearest("colour"), None);
        assert_eq!(misspelt("confg", ["config", "name"]), Some("config"));
        assert_eq!(misspelt("config", ["config", "name"]), None);
        assert_eq!(misspelt("config_id", ["config", "name"]), None);
    }

    #[test]
    fn a_value_is_told_by_what_was_found_and_what_is_wanted() {
        let said = |key, message| of_value(key, message, Notation::Toml);
        assert_eq!(
            said(
                "lease_seconds",
                r#"invalid type: string "2m", expected u64"#
            ),
            r#"found the text "2m", expected a whole number of seconds, such as lease_seconds = 120"#
        );
        assert_eq!(
            said(
                "listen",
                "invalid type: integer `7443`, expected socket address"
            ),
            "found the number 7443, expected an address with a port, such as listen = \"127.0.0.1:7443\""
        );
        assert_eq!(
            said("format", "unknown variant `xml`, expected `text` or `json`"),
            r#""xml" is not known here: expected "text" or "json""#
        );
        assert_eq!(said("tls", "something else"), "something else");
        assert_eq!(
            of_value(
                "name",
                "invalid type: null, expected a string at line 1 column 12",
                Notation::Json
            ),
            r#"found null, expected a text, such as "name": "text""#
        );
    }

    #[test]
    fn an_unknown_field_and_what_is_known_are_taken_out_of_the_message() {
        let message = "unknown field `a`, expected one of `b`, `c` at line 1 column 2";
        assert_eq!(unknown_field(message), Some(("a", vec!["b", "c"])));
        let one = "unknown field `a`, expected `b`";
        assert_eq!(unknown_field(one), Some(("a", vec!["b"])));
        let none = "unknown field `a`, there are no fields";
        assert_eq!(unknown_field(none), Some(("a", vec![])));
        assert_eq!(of_unknown("a", &[]), "nothing can be set here");
        assert_eq!(of_unknown("xyz", &["b", "c"]), "known are `b`, `c`");
    }
}
