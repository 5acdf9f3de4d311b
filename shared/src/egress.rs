//! Where a replica may connect to of itself: nowhere, or to the entries of an allow-list.
//!
//! Entries are addresses, never names: a rule in the kernel knows addresses only, and what a name
//! resolves to is decided by whoever answers for it, at any time.

use core::net::IpAddr;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// More would be no list that anybody has read.
pub const MAX_EGRESS_RULES: usize = 256;

/// The rules of a runtime template; without any a replica reaches nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Egress(Vec<EgressRule>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EgressRule {
    /// Port 53 of the node's resolvers, and a `resolv.conf` that names them.
    Dns,
    To(Destination),
}

/// A network, all its ports and protocols or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Without host bits.
    pub network: IpAddr,
    pub prefix: u8,
    pub port: Option<u16>,
    /// Only with a port; none means both.
    pub protocol: Option<IpProtocol>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpProtocol {
    Tcp,
    Udp,
}

/// What is wrong with an entry, and how to write it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("egress entry {entry:?} {problem}")]
pub struct InvalidEgress {
    pub entry: String,
    pub problem: String,
}

const SYNTAX: &str = "write \"dns\", or an address or network with an optional port and protocol: \
                      \"192.0.2.7\", \"10.0.0.0/8:443\", \"192.0.2.7:514/udp\", \"[2001:db8::/32]:443\"";

impl Egress {
    pub fn new(rules: Vec<EgressRule>) -> Self {
        Self(rules)
    }

    /// Parses a list of entries.
    pub fn parse<T: AsRef<str>>(entries: &[T]) -> Result<Self, InvalidEgress> {
        if entries.len() > MAX_EGRESS_RULES {
            let problem = format!(
                "is number {} of at most {MAX_EGRESS_RULES}: join entries to networks",
                entries.len()
            );
            let last = entries.last().map_or("", |last| last.as_ref());
            return Err(invalid(last, problem));
        }
        let rules = entries.iter().map(|entry| entry.as_ref().parse());
        Ok(Self(rules.collect::<Result<_, _>>()?))
    }

    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    pub fn rules(&self) -> &[EgressRule] {
        &self.0
    }

    pub fn allows_dns(&self) -> bool {
        self.0.contains(&EgressRule::Dns)
    }
}

fn invalid(entry: &str, problem: impl Into<String>) -> InvalidEgress {
    InvalidEgress {
        entry: entry.chars().take(80).collect(),
        problem: problem.into(),
    }
}

impl FromStr for EgressRule {
    type Err = InvalidEgress;

    fn from_str(entry: &str) -> Result<Self, InvalidEgress> {
        if entry == "dns" {
            return Ok(EgressRule::Dns);
        }
        let (rest, protocol) = match (entry.strip_suffix("/tcp"), entry.strip_suffix("/udp")) {
            (Some(rest), _) => (rest, Some(IpProtocol::Tcp)),
            (None, Some(rest)) => (rest, Some(IpProtocol::Udp)),
            (None, None) => (entry, None),
        };
        let (network, port) = split_port(rest);
        let port = match port {
            None => None,
            Some(port) => match port.parse::<u16>() {
                Ok(number) if number > 0 => Some(number),
                Ok(_) | Err(_) => {
                    let problem =
                        format!("has port {port:?}, which is none of 1 to 65535: {SYNTAX}");
                    return Err(invalid(entry, problem));
                }
            },
        };
        if protocol.is_some() && port.is_none() {
            let problem = "names a protocol without a port: write \"192.0.2.7:514/udp\"";
            return Err(invalid(entry, problem));
        }
        let (network, prefix) = parse_network(entry, network)?;
        Ok(EgressRule::To(Destination {
            network,
            prefix,
            port,
            protocol,
        }))
    }
}

/// `[NETWORK]:PORT`, `NETWORK:PORT` for IPv4, or a network alone.
fn split_port(text: &str) -> (&str, Option<&str>) {
    if let Some(inner) = text.strip_prefix('[') {
        if let Some((network, port)) = inner.split_once("]:") {
            return (network, Some(port));
        }
        if let Some(network) = inner.strip_suffix(']') {
            return (network, None);
        }
    }
    match text.split_once(':') {
        // Two colons: an IPv6 address without brackets.
        Some((_, port)) if port.contains(':') => (text, None),
        Some((network, port)) => (network, Some(port)),
        None => (text, None),
    }
}

fn parse_network(entry: &str, text: &str) -> Result<(IpAddr, u8), InvalidEgress> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        let is_name = address.chars().any(|c| c.is_ascii_alphabetic()) && !address.contains(':');
        let problem = if is_name {
            format!(
                "is a name: the node's rules know addresses only, and whoever answers for a name \
                 could point it anywhere; list its addresses (getent ahosts {address}), or those \
                 of a proxy"
            )
        } else {
            format!("is no address: {SYNTAX}")
        };
        return Err(invalid(entry, problem));
    };
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => bits,
        Some(text) => match text.parse::<u8>() {
            Ok(prefix) if prefix <= bits => prefix,
            Ok(_) | Err(_) => {
                let problem = format!("has prefix {text:?}, which is none of 0 to {bits}");
                return Err(invalid(entry, problem));
            }
        },
    };
    let network = masked(address, prefix);
    if network != address {
        let problem =
            format!("has bits after its prefix: write {network}/{prefix}, or one address");
        return Err(invalid(entry, problem));
    }
    Ok((network, prefix))
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

impl Destination {
    /// Whether all of it lies in a network.
    pub fn lies_in(&self, network: IpAddr, prefix: u8) -> bool {
        self.network.is_ipv4() == network.is_ipv4()
            && self.prefix >= prefix
            && masked(self.network, prefix) == network
    }

    /// `ADDRESS`, or `ADDRESS/PREFIX` where that is more than one.
    pub fn cidr(&self) -> String {
        let bits = if self.network.is_ipv4() { 32 } else { 128 };
        if self.prefix == bits {
            self.network.to_string()
        } else {
            format!("{}/{}", self.network, self.prefix)
        }
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = match self {
            EgressRule::Dns => return f.write_str("dns"),
            EgressRule::To(to) => to,
        };
        let cidr = to.cidr();
        match (to.port, to.network) {
            (None, _) => f.write_str(&cidr)?,
            (Some(port), IpAddr::V4(_)) => write!(f, "{cidr}:{port}")?,
            (Some(port), IpAddr::V6(_)) => write!(f, "[{cidr}]:{port}")?,
        }
        match to.protocol {
            None => Ok(()),
            Some(IpProtocol::Tcp) => f.write_str("/tcp"),
            Some(IpProtocol::Udp) => f.write_str("/udp"),
        }
    }
}

impl Serialize for Egress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_none() {
            return serializer.serialize_str("none");
        }
        serializer.collect_seq(self.0.iter().map(EgressRule::to_string))
    }
}

impl<'de> Deserialize<'de> for Egress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Egress;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"none\" or a list such as [\"10.0.0.0/8:443\", \"dns\"]")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Egress, E> {
                match text {
                    "none" => Ok(Egress::default()),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Egress, A::Error> {
                let mut entries: Vec<String> = Vec::new();
                while let Some(entry) = seq.next_element()? {
                    entries.push(entry);
                }
                Egress::parse(&entries).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(text: &str) -> EgressRule {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    fn refused(text: &str) -> String {
        match text.parse::<EgressRule>() {
            Ok(rule) => panic!("{text} was taken for {rule:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn an_entry_is_an_address_or_a_network_with_an_optional_port_and_protocol() {
        let to = |network: &str, prefix, port, protocol| {
            EgressRule::To(Destination {
                network: network.parse().expect("address"),
                prefix,
                port,
                protocol,
            })
        };
        assert_eq!(rule("dns"), EgressRule::Dns);
        assert_eq!(rule("192.0.2.7"), to("192.0.2.7", 32, None, None));
        assert_eq!(rule("10.0.0.0/8:443"), to("10.0.0.0", 8, Some(443), None));
        assert_eq!(rule("0.0.0.0/0"), to("0.0.0.0", 0, None, None));
        assert_eq!(
            rule("192.0.2.7:514/udp"),
            to("192.0.2.7", 32, Some(514), Some(IpProtocol::Udp))
        );
        assert_eq!(
            rule("[2001:db8::1]:443/tcp"),
            to("2001:db8::1", 128, Some(443), Some(IpProtocol::Tcp))
        );
        assert_eq!(
            rule("[2001:db8::/32]:443"),
            to("2001:db8::", 32, Some(443), None)
        );
        assert_eq!(rule("2001:db8::/32"), to("2001:db8::", 32, None, None));
        assert_eq!(rule("[::1]"), to("::1", 128, None, None));
    }

    #[test]
    fn a_name_is_refused_with_the_reason_and_the_way_out() {
        for name in [
            "pypi.org",
            "pypi.org:443",
            "localhost",
            "*.example.com:443/tcp",
        ] {
            let said = refused(name);
            assert!(
                said.contains("is a name") && said.contains("getent ahosts"),
                "{said}"
            );
        }
    }

    #[test]
    fn what_is_no_entry_is_refused_by_what_is_wrong_with_it() {
        for (entry, said) in [
            ("", "no address"),
            ("10.0.0.1/8", "write 10.0.0.0/8"),
            ("10.0.0.0/33", "0 to 32"),
            ("2001:db8::/129", "0 to 128"),
            ("10.0.0.0/8:0", "1 to 65535"),
            ("10.0.0.0/8:65536", "1 to 65535"),
            ("10.0.0.0/8:", "1 to 65535"),
            ("10.0.0.0/8/udp", "without a port"),
            ("10.0.0", "no address"),
            ("[10.0.0.1", "no address"),
            ("10.0.0.1:80; drop", "1 to 65535"),
        ] {
            let error = refused(entry);
            assert!(error.contains(said), "{entry}: {error}");
        }
    }

    #[test]
    fn none_and_a_list_are_the_two_ways_to_say_it() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Holder {
            egress: Egress,
        }
        let parse = |json: &str| serde_json::from_str::<Holder>(json);
        assert!(
            parse(r#"{"egress":"none"}"#)
                .expect("valid")
                .egress
                .is_none()
        );
        assert!(parse(r#"{"egress":[]}"#).expect("valid").egress.is_none());
        let some = parse(r#"{"egress":["dns","10.0.0.0/8:443"]}"#).expect("valid");
        assert!(some.egress.allows_dns());
        assert_eq!(some.egress.rules().len(), 2);
        let said = parse(r#"{"egress":"all"}"#)
            .expect_err("refused")
            .to_string();
        assert!(said.contains("\"none\" or a list"), "{said}");
        let said = parse(r#"{"egress":["pypi.org"]}"#).expect_err("refused");
        assert!(said.to_string().contains("is a name"), "{said}");
        let many = vec!["10.0.0.1"; MAX_EGRESS_RULES + 1];
        assert!(Egress::parse(&many).is_err());
    }

    fn destinations() -> impl Strategy<Value = EgressRule> {
        let protocol = prop_oneof![
            Just(None),
            Just(Some(IpProtocol::Tcp)),
            Just(Some(IpProtocol::Udp))
        ];
        let port = proptest::option::of(1u16..);
        (any::<IpAddr>(), any::<u8>(), port, protocol).prop_map(
            |(address, prefix, port, protocol)| {
                let prefix = prefix % if address.is_ipv4() { 33 } else { 129 };
                EgressRule::To(Destination {
                    network: masked(address, prefix),
                    prefix,
                    port,
                    protocol: protocol.filter(|_| port.is_some()),
                })
            },
        )
    }

    proptest! {
        #[test]
        fn a_rule_that_is_written_reads_back_as_itself(rule in destinations()) {
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = text.parse::<EgressRule>();
        }

        #[test]
        fn a_rule_holds_nothing_but_what_addresses_and_ports_are_made_of(text in "[0-9a-f:./\\[\\]tcpud \n;{}]{0,30}") {
            if let Ok(rule) = text.parse::<EgressRule>() {
                let harmful = rule.to_string().contains([' ', '\n', ';', '{', '}']);
                prop_assert!(!harmful);
            }
        }
    }
}
