//! Names and ids. Each is parsed once and valid from then on.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::misnomer::{Alphabet, problem, suggestion};

/// A text that is not a valid name: what it was meant to be, the text, and the rule it breaks. People
/// read the same sentence on the command line, in HTTP bodies and about configuration files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName {
    pub kind: &'static str,
    pub text: String,
    pub rule: &'static str,
    /// What is wrong with it, `holds ' ' as character 4`; empty where only the rule can say.
    pub problem: String,
    /// A valid name that looks like it.
    pub suggestion: Option<String>,
}

impl InvalidName {
    pub(crate) fn by_rule(kind: &'static str, text: &str, rule: &'static str) -> Self {
        Self {
            kind,
            text: text.chars().take(80).collect(),
            rule,
            problem: String::new(),
            suggestion: None,
        }
    }
}

impl std::error::Error for InvalidName {}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, text, rule) = (self.kind, &self.text, self.rule);
        if self.problem.is_empty() {
            write!(f, "{text:?} is not a valid {kind}: expected {rule}")?;
        } else {
            write!(
                f,
                "{text:?} is not a valid {kind}: it {}, expected {rule}",
                self.problem
            )?;
        }
        match &self.suggestion {
            Some(name) => write!(f, "; {name:?} would do"),
            None => Ok(()),
        }
    }
}

/// Text newtypes differ in name and rule only; a function cannot declare types, hence the macro.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:path, $letters:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn parse(text: &str) -> Result<Self, InvalidName> {
                if $valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    let letters: Option<&Alphabet> = $letters;
                    Err(InvalidName {
                        problem: letters.map_or_else(String::new, |it| problem(text, it)),
                        suggestion: letters.and_then(|it| suggestion(text, it, $valid)),
                        ..InvalidName::by_rule($kind, text, $rule)
                    })
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "description": concat!("A ", $kind, ": ", $rule, "."),
                })
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// An endpoint's name, as it stands in `/serving-endpoints/{name}/invocations`.
    EndpointName, "endpoint name", "1 to 63 of A-Z a-z 0-9 _ - (^[A-Za-z0-9_-]{1,63}$)",
    is_url_name, Some(&URL_NAME)
);
text_id!(
    /// A served entity's name, unique within its endpoint.
    EntityName, "served entity name", "1 to 63 of A-Z a-z 0-9 _ - (^[A-Za-z0-9_-]{1,63}$)",
    is_url_name, Some(&URL_NAME)
);
text_id!(
    /// A registered model's name, `iris` or `catalog.schema.iris`.
    ModelName, "model name",
    "1 to 127 of A-Z a-z 0-9 _ - . starting with a letter or digit (^[A-Za-z0-9][A-Za-z0-9_.-]{0,126}$)",
    is_model_name, Some(&MODEL_NAME)
);
text_id!(
    /// A movable name for one version of a model, the `prod` of `iris@prod`.
    AliasName, "alias", "1 to 63 of A-Z a-z 0-9 _ - that are not digits only", is_alias, Some(&URL_NAME)
);
text_id!(
    /// A node's name. It becomes a label in certificates' DNS names, hence lower case.
    NodeName, "node name",
    "1 to 63 of a-z 0-9 - . starting and ending with a letter or digit, without two dots in a row",
    is_node_name, Some(&NODE_NAME)
);
text_id!(
    /// A replica's id: also its container's id and its folder's name.
    ReplicaId, "replica id", "16 lower-case hexadecimal digits", is_hex16, None
);
text_id!(
    /// Which cluster a plan, a route table or a certificate belongs to.
    ClusterId, "cluster id", "32 lower-case hexadecimal digits", is_hex32, None
);
text_id!(
    /// An endpoint's id: stable for its life, never used again.
    EndpointId, "endpoint id", "32 lower-case hexadecimal digits", is_hex32, None
);
text_id!(
    /// The public part of a token, safe to show and to log.
    TokenId, "token id", "16 lower-case hexadecimal digits", is_hex16, None
);
text_id!(
    /// An OCI image reference, `stokehold.local/runtime-mlflow:1`.
    ImageRef, "image reference", "1 to 255 printable ASCII characters without spaces", is_image_ref, None
);
text_id!(
    /// A runtime's name, `mlflow`.
    RuntimeName, "runtime name", "1 to 63 of A-Z a-z 0-9 _ - (^[A-Za-z0-9_-]{1,63}$)",
    is_url_name, Some(&URL_NAME)
);

impl ImageRef {
    /// The registry that the reference names, `registry.example:5000`: its part before the first `/`,
    /// where that can be a host and is not `stokehold.local`, under which images are only imported. A
    /// short name such as `example:1` names none: nothing is ever looked for where nobody said.
    pub fn registry(&self) -> Option<&str> {
        let (first, _) = self.as_str().split_once('/')?;
        let host = first.contains(['.', ':']) || first == "localhost";
        (host && first != IMPORT_ONLY).then_some(first)
    }
}

/// The host of references that no registry is asked for.
pub const IMPORT_ONLY: &str = "stokehold.local";

const URL_NAME: Alphabet = Alphabet {
    most: 63,
    lower: false,
    marks: "_-",
};
const MODEL_NAME: Alphabet = Alphabet {
    most: 127,
    marks: "_-.",
    ..URL_NAME
};
const NODE_NAME: Alphabet = Alphabet {
    lower: true,
    marks: "-.",
    ..URL_NAME
};

fn is_url_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn is_model_name(text: &str) -> bool {
    (1..=127).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

fn is_alias(text: &str) -> bool {
    is_url_name(text) && !text.bytes().all(|b| b.is_ascii_digit())
}

fn is_node_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && plain(bytes[0])
        && plain(bytes[bytes.len() - 1])
        && bytes.iter().all(|&b| plain(b) || b == b'-' || b == b'.')
        && text
            .split('.')
            .all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
}

fn is_lower_hex(text: &str, len: usize) -> bool {
    text.len() == len
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_hex16(text: &str) -> bool {
    is_lower_hex(text, 16)
}

fn is_hex32(text: &str) -> bool {
    is_lower_hex(text, 32)
}

fn is_image_ref(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// A replica id from 64 random bits.
impl ReplicaId {
    pub fn from_bits(bits: u64) -> Self {
        Self(format!("{bits:016x}"))
    }
}

impl TokenId {
    pub fn from_bits(bits: u64) -> Self {
        Self(format!("{bits:016x}"))
    }
}

impl EndpointId {
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("{bits:032x}"))
    }
}

impl ClusterId {
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("{bits:032x}"))
    }
}

/// Which scheduler leads: grows with every start of a scheduler, fences the ones before.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// Which change: grows with every change within an epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a certificate allows its holder to be.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Agent,
    Gateway,
    Scheduler,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::Gateway => "gateway",
            Role::Scheduler => "scheduler",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text {
            "agent" => Ok(Role::Agent),
            "gateway" => Ok(Role::Gateway),
            "scheduler" => Ok(Role::Scheduler),
            _ => {
                let rule = "agent, gateway or scheduler";
                Err(InvalidName::by_rule("role", text, rule))
            }
        }
    }
}

/// One served entity of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServedEntityId {
    pub endpoint: EndpointName,
    pub entity: EntityName,
}

impl fmt::Display for ServedEntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.endpoint, self.entity)
    }
}

/// A model as people name it: `iris/2` or `iris@prod`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ModelRef {
    Version { name: ModelName, version: u32 },
    Alias { name: ModelName, alias: AliasName },
}

impl ModelRef {
    pub fn name(&self) -> &ModelName {
        match self {
            ModelRef::Version { name, .. } | ModelRef::Alias { name, .. } => name,
        }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelRef::Version { name, version } => write!(f, "{name}/{version}"),
            ModelRef::Alias { name, alias } => write!(f, "{name}@{alias}"),
        }
    }
}

impl FromStr for ModelRef {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || {
            let rule = "NAME/VERSION with a version from 1 on (iris/2) or NAME@ALIAS (iris@prod)";
            InvalidName::by_rule("model reference", text, rule)
        };
        if let Some((name, version)) = text.split_once('/') {
            let version: u32 = version.parse().map_err(|_| invalid())?;
            if version == 0 {
                return Err(invalid());
            }
            return Ok(ModelRef::Version {
                name: ModelName::parse(name)?,
                version,
            });
        }
        let (name, alias) = text.split_once('@').ok_or_else(invalid)?;
        Ok(ModelRef::Alias {
            name: ModelName::parse(name)?,
            alias: AliasName::parse(alias)?,
        })
    }
}

impl TryFrom<String> for ModelRef {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<ModelRef> for String {
    fn from(reference: ModelRef) -> String {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_endpoint_name_refuses_what_a_url_or_a_newline_would_break() {
        for bad in ["", "a b", "a/b", "iris\n", "ä", &"x".repeat(64), ".."] {
            assert!(EndpointName::parse(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["iris", "Iris_2-b", &"x".repeat(63)] {
            assert!(EndpointName::parse(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn a_refused_name_is_told_what_is_wrong_by_which_rule_and_what_would_do() {
        let told = |text: &str| EndpointName::parse(text).expect_err("refused").to_string();
        let rule = "expected 1 to 63 of A-Z a-z 0-9 _ - (^[A-Za-z0-9_-]{1,63}$)";
        let name = "is not a valid endpoint name: it";
        assert_eq!(
            told("my iris"),
            format!("\"my iris\" {name} holds ' ' as character 3, {rule}; \"my-iris\" would do")
        );
        assert_eq!(told(""), format!("\"\" {name} is empty, {rule}"));
        assert_eq!(
            told("größe.v2\n"),
            format!(
                "\"größe.v2\\n\" {name} holds 'ö' as character 3, {rule}; \"gr-e-v2\" would do"
            )
        );
        let long = "x".repeat(70);
        assert!(
            told(&long).contains("has 70 characters") && told(&long).contains(&"x".repeat(63)),
            "{}",
            told(&long)
        );
        assert_eq!(
            told("§§"),
            format!("\"§§\" {name} holds '§' as character 1, {rule}")
        );
        let model = ModelName::parse("-iris").expect_err("refused").to_string();
        assert!(model.ends_with("; \"iris\" would do"), "{model}");
        let node = NodeName::parse("GPU_7").expect_err("refused").to_string();
        assert!(node.ends_with("; \"gpu-7\" would do"), "{node}");
        assert!(
            !"iris"
                .parse::<ModelRef>()
                .expect_err("refused")
                .to_string()
                .contains("would do")
        );
    }

    #[test]
    fn a_node_name_is_a_dns_name_in_lower_case() {
        for bad in ["", "-a", "a-", "A", "a..b", "a.-b", "a_b"] {
            assert!(NodeName::parse(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "node-1", "gpu7.rack2"] {
            assert!(NodeName::parse(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn a_registry_is_asked_only_where_the_reference_names_one() {
        for (text, registry) in [
            ("ghcr.io/a/b:1", Some("ghcr.io")),
            ("localhost/a", Some("localhost")),
            ("localhost:5000/a", Some("localhost:5000")),
            ("stokehold.local/runtime-mlflow:1", None),
            ("example:1", None),
            ("team/example:1", None),
        ] {
            let reference = ImageRef::parse(text).expect("valid");
            assert_eq!(reference.registry(), registry, "{text}");
        }
    }

    #[test]
    fn a_model_reference_names_a_version_or_an_alias() {
        let version: ModelRef = "iris/2".parse().expect("valid");
        assert_eq!(
            version,
            ModelRef::Version {
                name: ModelName::parse("iris").expect("valid"),
                version: 2
            }
        );
        assert!("iris@prod".parse::<ModelRef>().is_ok());
        for bad in [
            "iris", "iris/0", "iris/x", "iris@1", "/1", "iris/", "iris/1/2",
        ] {
            assert!(bad.parse::<ModelRef>().is_err(), "{bad:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_a_parsed_name_prints_as_it_was(text in ".{0,80}") {
            for error in [EndpointName::parse(&text).err(), NodeName::parse(&text).err()] {
                let suggested = error.and_then(|error| error.suggestion);
                prop_assert!(suggested.is_none_or(|it| ModelName::parse(&it).is_ok()));
            }
            if let Ok(name) = EndpointName::parse(&text) { prop_assert_eq!(name.to_string(), text.clone()); }
            if let Ok(name) = NodeName::parse(&text) { prop_assert_eq!(name.to_string(), text.clone()); }
            if let Ok(name) = ModelName::parse(&text) { prop_assert_eq!(name.to_string(), text.clone()); }
            let _ = text.parse::<ModelRef>();
        }
    }
}
