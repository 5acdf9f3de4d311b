//! What a CNI plugin answers. Pure.
//!
//! Plugins are local programs of root's, so their answers are trusted; yet what is taken from them
//! into rules is checked to be what it should be.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The kernel's limit, the closing zero byte left out.
const MAX_INTERFACE_BYTES: usize = 15;

/// What a chain of plugins made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The replica's addresses.
    pub addresses: Vec<IpAddr>,
    /// Interfaces on the node, bridges among them.
    pub host_interfaces: Vec<String>,
    /// Of the replica's own interface.
    pub mac: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    #[error("its answer is no JSON")]
    Syntax(#[from] serde_json::Error),
    #[error("its answer has {field} {value:?}, which is none")]
    Value { field: &'static str, value: String },
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
}

/// The result as the next plugin is to be given it, and what it says of the replica's interface
/// `ifname`.
pub fn parse(stdout: &[u8], ifname: &str) -> Result<(Value, Link), ResultError> {
    let value: Value = serde_json::from_slice(stdout)?;
    let answer = Answer::deserialize(&value)?;
    let mut link = Link::default();
    for interface in answer.interfaces {
        if !is_interface(&interface.name) {
            return Err(wrong("interface", interface.name));
        }
        if interface.sandbox.is_empty() {
            link.host_interfaces.push(interface.name);
        } else if interface.name == ifname && !interface.mac.is_empty() {
            if !is_mac(&interface.mac) {
                return Err(wrong("mac", interface.mac));
            }
            link.mac = Some(interface.mac.to_ascii_lowercase());
        }
    }
    for ip in answer.ips {
        let address = ip.address.split('/').next().unwrap_or_default();
        match address.parse() {
            Ok(address) => link.addresses.push(address),
            Err(_) => return Err(wrong("address", ip.address)),
        }
    }
    Ok((value, link))
}

fn wrong(field: &'static str, value: String) -> ResultError {
    let value = value.chars().take(80).collect();
    ResultError::Value { field, value }
}

pub fn is_interface(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= MAX_INTERFACE_BYTES && name.bytes().all(plain)
}

fn is_mac(text: &str) -> bool {
    let pair = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
    text.split(':').count() == 6 && text.split(':').all(pair)
}

/// What a plugin that failed says: the error of the protocol, or whatever it printed.
pub fn failure(stdout: &[u8], stderr: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Failure {
        msg: String,
        #[serde(default)]
        details: String,
    }
    match serde_json::from_slice::<Failure>(stdout) {
        Ok(Failure { msg, details }) if details.is_empty() => super::program::told(msg.as_bytes()),
        Ok(Failure { msg, details }) => {
            super::program::told(format!("{msg}: {details}").as_bytes())
        }
        Err(_) => super::program::told(&[stdout, b" ", stderr].concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BRIDGE: &str = r#"{"cniVersion":"1.0.0","interfaces":[
        {"name":"stokehold0","mac":"aa:59:31:ea:de:35"},
        {"name":"vethbb5e926f","mac":"da:52:90:18:e1:a0"},
        {"name":"eth0","mac":"DE:00:7d:e1:4a:9d","sandbox":"/run/netns/x"}],
        "ips":[{"interface":2,"address":"10.231.0.2/20","gateway":"10.231.0.1"}],
        "routes":[{"dst":"0.0.0.0/0","gw":"10.231.0.1"}],"dns":{}}"#;

    #[test]
    fn the_bridge_plugins_answer_tells_address_interfaces_and_mac() {
        let (value, link) = parse(BRIDGE.as_bytes(), "eth0").expect("valid");
        assert_eq!(
            link,
            Link {
                addresses: vec!["10.231.0.2".parse().expect("address")],
                host_interfaces: vec!["stokehold0".into(), "vethbb5e926f".into()],
                mac: Some("de:00:7d:e1:4a:9d".into()),
            }
        );
        assert_eq!(value["routes"][0]["gw"], "10.231.0.1");
    }

    #[test]
    fn an_answer_without_interfaces_or_addresses_is_one() {
        let (_, link) = parse(br#"{"cniVersion":"1.0.0"}"#, "eth0").expect("valid");
        assert_eq!(link, Link::default());
    }

    #[test]
    fn what_would_not_fit_into_a_rule_is_refused() {
        for (from, to, said) in [
            ("vethbb5e926f", "veth\\\" drop", "interface"),
            ("vethbb5e926f", "averyveryverylongname", "interface"),
            ("10.231.0.2/20", "10.231.0/20", "address"),
            ("DE:00:7d:e1:4a:9d", "DE:00", "mac"),
        ] {
            let text = BRIDGE.replace(from, to);
            let error = parse(text.as_bytes(), "eth0")
                .expect_err("refused")
                .to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(parse(b"{", "eth0").is_err());
    }

    #[test]
    fn a_failure_is_told_by_its_message_or_by_what_was_printed() {
        let json = br#"{"code":999,"msg":"no free addresses","details":"range 10.0.0.0/29"}"#;
        assert_eq!(failure(json, b""), "no free addresses: range 10.0.0.0/29");
        assert_eq!(failure(b"", b"panic:\n  x"), "panic: x");
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, "eth0");
            failure(&bytes, &bytes);
        }
    }
}
