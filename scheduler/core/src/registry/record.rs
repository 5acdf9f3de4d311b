//! The form of a record in the store: JSON with a version `v`, so that a program meets a record of
//! a later one with a clear refusal instead of a guess.

use std::str::FromStr;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::store_op::{Entries, Op, RecordTooLarge, RestoreError, records};

/// The version of all records that this program writes.
const RECORD_VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: u32,
    #[serde(flatten)]
    record: T,
}

pub(super) fn put<T: Serialize>(key: String, record: &T) -> Result<Op, RecordTooLarge> {
    Op::put(
        key,
        &Versioned {
            v: RECORD_VERSION,
            record,
        },
    )
}

/// All records below a prefix with the rest of their keys parsed.
pub(super) fn restore<K, T>(entries: &Entries, prefix: &str) -> Result<Vec<(K, T)>, RestoreError>
where
    K: FromStr,
    K::Err: std::fmt::Display,
    T: DeserializeOwned,
{
    let mut restored = Vec::new();
    for entry in records::<Versioned<T>>(entries, prefix) {
        let (rest, versioned) = entry?;
        let invalid = |problem: String| RestoreError::Invalid {
            key: format!("{prefix}{rest}"),
            problem,
        };
        if versioned.v != RECORD_VERSION {
            return Err(invalid(format!(
                "has version {}, this program knows {RECORD_VERSION}: start the program that wrote it, or a later one",
                versioned.v
            )));
        }
        let key = rest
            .parse()
            .map_err(|e: K::Err| invalid(format!("has a key that is not valid: {e}")))?;
        restored.push((key, versioned.record));
    }
    Ok(restored)
}

/// `NAME/REST`, the tail of a key with two parts.
pub(super) struct Pair<A, B>(pub(super) A, pub(super) B);

impl<A: FromStr, B: FromStr> FromStr for Pair<A, B> {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected two valid parts with a `/` between them";
        let (first, second) = text.split_once('/').ok_or(expected)?;
        match (first.parse(), second.parse()) {
            (Ok(first), Ok(second)) => Ok(Self(first, second)),
            _ => Err(expected),
        }
    }
}

pub(super) fn to_hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}
