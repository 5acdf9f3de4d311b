//! What any JSON body must keep to, whatever its fields: no key twice in one object (whoever reads it
//! next might take the other one), and no deeper nesting than a person would write.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::body::wrong;
use super::error::Refusal;

const MAX_DEPTH: u32 = 100;

pub(super) fn check(bytes: &[u8]) -> Result<(), Refusal> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut reader, &mut track);
    Value { left: MAX_DEPTH }
        .deserialize(tracked)
        .map_err(|problem| wrong(&track.path().to_string(), &problem))
}

/// Any value, with so many levels left below it.
#[derive(Clone, Copy)]
struct Value {
    left: u32,
}

impl Value {
    fn below<E: serde::de::Error>(self) -> Result<Self, E> {
        let left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| E::custom(format_args!("nested deeper than {MAX_DEPTH} levels")))?;
        Ok(Self { left })
    }
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let below = self.below()?;
        while items.next_element_seed(below)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let below = self.below()?;
        let mut seen = HashSet::new();
        while let Some(key) = fields.next_key::<String>()? {
            if seen.contains(&key) {
                let shown: String = key.chars().take(80).collect();
                return Err(A::Error::custom(format_args!("key {shown:?} stands twice")));
            }
            seen.insert(key);
            fields.next_value_seed(below)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(body: &str) -> String {
        check(body.as_bytes()).expect_err("refused").0.message
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_wherever_it_is() {
        let twice =
            problem(r#"{"config":{"served_entities":[{"environment_vars":{"A":"1","A":"2"}}]}}"#);
        assert!(twice.contains(r#"key "A" stands twice"#), "{twice}");
        assert!(
            twice.starts_with("config.served_entities[0].environment_vars"),
            "{twice}"
        );
        let siblings = r#"{"a":{"x":1},"b":{"x":[null,true,-1,2.5,"t"]}}"#;
        assert!(check(siblings.as_bytes()).is_ok());
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(check(nested(100).as_bytes()).is_ok());
        let deep = problem(&nested(101));
        assert!(deep.contains("nested deeper than 100 levels"), "{deep}");
        // Far beyond it the stack must hold, too.
        assert!(check(nested(1 << 19).as_bytes()).is_err());
    }
}
