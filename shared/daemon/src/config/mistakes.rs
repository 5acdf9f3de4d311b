//! Finds all that is wrong in a TOML text: what is wrong is noted, taken out, and the rest read again.

use std::ops::Range;

use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use shared::mistake::{self, Notation};
use toml::de::{DeTable, DeValue, Deserializer, Error};

/// More are not read by anybody.
const MAX_MISTAKES: usize = 20;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) line: Option<usize>,
    pub(super) what: String,
}

/// Where a value lies: the names of the tables above it, then its own.
type KeyPath = Vec<String>;

pub(super) struct Read<T> {
    /// Without what is wrong.
    pub(super) value: Option<T>,
    pub(super) table: toml::Table,
    /// By line.
    pub(super) mistakes: Vec<Mistake>,
}

pub(super) fn read<T: DeserializeOwned>(text: &str) -> Read<T> {
    let mut document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            return Read {
                value: None,
                table: toml::Table::new(),
                mistakes: vec![mistake(text, &error, None)],
            };
        }
    };
    let mut found = Vec::new();
    let value = loop {
        let error = match T::deserialize(Deserializer::from(document.clone())) {
            Ok(value) => break Some(value),
            Err(error) => error,
        };
        let place = error
            .span()
            .and_then(|span| take_out(document.get_mut(), &span));
        let lacks = error.message().starts_with("missing field");
        let what = place.as_ref().map(|path| explain::<T>(path, &error));
        found.push(mistake(text, &error, what));
        if place.is_none() || lacks || found.len() >= MAX_MISTAKES {
            break None;
        }
    };
    found.sort_by_key(|mistake| mistake.line);
    Read {
        value,
        table: toml::Table::deserialize(Deserializer::from(document)).unwrap_or_default(),
        mistakes: found,
    }
}

fn mistake(text: &str, error: &Error, what: Option<String>) -> Mistake {
    let line_of = |span: Range<usize>| {
        let before = text.as_bytes().iter().take(span.start);
        before.filter(|b| **b == b'\n').count() + 1
    };
    Mistake {
        line: error.span().map(line_of),
        what: what.unwrap_or_else(|| error.message().trim_end().replace('\n', ", ")),
    }
}

/// Removes the key or value at a span; the innermost one that holds it.
fn take_out(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<KeyPath> {
    let mut own = None;
    let mut below = None;
    for (key, value) in table.iter_mut() {
        let name = key.get_ref().to_string();
        if key.span() == *span {
            own = Some(name);
            break;
        }
        let holds = value.span().start <= span.start && span.end <= value.span().end;
        if let DeValue::Table(inner) = value.get_mut()
            && let Some(mut path) = take_out(inner, span)
        {
            path.insert(0, name);
            below = Some(path);
            break;
        }
        if holds {
            own = Some(name);
            break;
        }
    }
    if below.is_some() {
        return below;
    }
    let name = own?;
    table.remove(name.as_str());
    Some(vec![name])
}

fn explain<T: DeserializeOwned>(path: &[String], error: &Error) -> String {
    let Some((key, tables)) = path.split_last() else {
        return error.message().to_owned();
    };
    if let Some((written, known)) = mistake::unknown_field(error.message()) {
        let place = match tables {
            [] => String::new(),
            tables => format!(" in [{}]", tables.join(".")),
        };
        let hint =
            elsewhere::<T>(tables, written).unwrap_or_else(|| mistake::of_unknown(written, &known));
        return format!("there is no key `{written}`{place}: {hint}");
    }
    let problem = mistake::of_value(key, error.message(), Notation::Toml);
    format!("{}: {problem}", path.join("."))
}

/// A key that exists, but not in this table.
fn elsewhere<T: DeserializeOwned>(tables: &[String], key: &str) -> Option<String> {
    // Whether a table has a key is asked by giving it: any answer but "unknown field" is a yes.
    let is_known = |document: &str| match toml::from_str::<T>(document) {
        Ok(_) => true,
        Err(error) => mistake::unknown_field(error.message()).is_none(),
    };
    let quoted = toml::Value::String(key.to_owned()).to_string();
    if !tables.is_empty() && is_known(&format!("{quoted} = 0")) {
        return Some("it belongs above the first [table]".to_owned());
    }
    let probe = toml::from_str::<T>("\"?\" = 0").err()?;
    let (_, names) = mistake::unknown_field(probe.message())?;
    let is_table = |name: &&str| toml::from_str::<T>(&format!("[{name}]")).is_ok();
    names
        .into_iter()
        .filter(|name| tables != [(*name).to_owned()])
        .filter(is_table)
        .find(|name| is_known(&format!("[{name}]\n{quoted} = 0")))
        .map(|name| format!("it belongs below [{name}]"))
}
