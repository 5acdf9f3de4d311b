//! What the core wants written: operations on named values, as a store (sled or etcd) carries them.

use std::collections::BTreeMap;

/// Operations that one commit carries at most: etcd's limit for a transaction.
pub const MAX_OPS: usize = 128;
/// A longer value is refused: the store is for small records, never for blobs.
pub const MAX_VALUE_BYTES: usize = 16 << 10;

/// Everything in a store, by key.
pub type Entries = BTreeMap<String, Vec<u8>>;

/// One change. Keys are ASCII paths (`endpoint/iris`), at most 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put { key: String, value: Vec<u8> },
    Delete { key: String },
}

impl Op {
    /// A record as JSON. `Err` names the record that is too large.
    pub fn put<T: serde::Serialize>(key: String, record: &T) -> Result<Self, RecordTooLarge> {
        let value = serde_json::to_vec(record).expect("records have text keys and finite numbers");
        if value.len() > MAX_VALUE_BYTES {
            return Err(RecordTooLarge {
                key,
                len: value.len(),
            });
        }
        Ok(Op::Put { key, value })
    }

    /// Whether the fleet goes on as well without it: what happened, and what was learned. A store
    /// without room for these holds no decision up.
    pub fn is_expendable(&self) -> bool {
        let key = self.key();
        key.starts_with(crate::events::PREFIX) || key.starts_with(crate::learned::PREFIX)
    }

    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// A record that no store would take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {key} has {len} bytes, over the limit of {MAX_VALUE_BYTES}")]
pub struct RecordTooLarge {
    pub key: String,
    pub len: usize,
}

/// A store whose contents this program does not understand.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("record {key} is not readable")]
    Record {
        key: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("record {key} {problem}")]
    Invalid { key: String, problem: String },
}

/// The records below a prefix, parsed.
pub fn records<'a, T: serde::de::DeserializeOwned>(
    entries: &'a Entries,
    prefix: &'a str,
) -> impl Iterator<Item = Result<(&'a str, T), RestoreError>> + 'a {
    entries
        .range(prefix.to_owned()..)
        .take_while(move |(key, _)| key.starts_with(prefix))
        .map(move |(key, value)| match serde_json::from_slice(value) {
            Ok(record) => Ok((&key[prefix.len()..], record)),
            Err(source) => Err(RestoreError::Record {
                key: key.clone(),
                source,
            }),
        })
}
