//! A [`MonoTime`] as whole milliseconds, for states that are written down.

use serde::{Deserialize, Deserializer, Serializer};
use shared::units::MonoTime;

pub(crate) fn serialize<S: Serializer>(at: &MonoTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(at.as_millis())
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<MonoTime, D::Error> {
    u64::deserialize(deserializer).map(MonoTime::from_millis)
}

/// The same for one that may be missing.
pub(crate) mod optional {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use shared::units::MonoTime;

    pub(crate) fn serialize<S: Serializer>(
        at: &Option<MonoTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        at.map(MonoTime::as_millis).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<MonoTime>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(MonoTime::from_millis))
    }
}
