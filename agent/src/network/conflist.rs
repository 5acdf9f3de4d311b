//! Which CNI plugins make a replica's interface, and with which configuration: our own bridge, or the
//! operator's conflist. Pure.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The newest version that Debian's plugins speak.
const CNI_VERSION: &str = "1.0.0";
/// Where host-local keeps leases unless it is told otherwise.
const HOST_LOCAL_DIR: &str = "/var/lib/cni/networks";
/// The bridge plugin's own default.
const DEFAULT_BRIDGE: &str = "cni0";
/// A conflist is a page of text.
pub const MAX_CONFLIST_BYTES: u64 = 256 << 10;

/// A list of plugins with all that they are given. It is kept with each replica that was attached by
/// it, since DEL must be told the same as ADD was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conflist {
    #[serde(rename = "cniVersion")]
    pub cni_version: String,
    pub name: String,
    pub plugins: Vec<Map<String, Value>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
    #[error("it is no conflist")]
    Syntax(#[from] serde_json::Error),
    #[error("{0}")]
    Problem(&'static str),
}

/// The network of our own bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    pub fn new(network: Ipv4Addr, prefix: u8) -> Option<Self> {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let plain = (8..=29).contains(&prefix) && u32::from(network) & !mask == 0;
        plain.then_some(Self { network, prefix })
    }

    /// The node's own address on the bridge: the first.
    pub fn gateway(&self) -> Ipv4Addr {
        (u32::from(self.network) + 1).into()
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn overlaps(&self, network: Ipv4Addr, prefix: u8) -> bool {
        let shorter = prefix.min(self.prefix);
        let mask = u32::MAX.checked_shl(32 - u32::from(shorter)).unwrap_or(0);
        u32::from(self.network) & mask == u32::from(network) & mask
    }
}

impl std::str::FromStr for Subnet {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (network, prefix) = text.split_once('/').ok_or(())?;
        let network = network.parse().map_err(|_| ())?;
        Subnet::new(network, prefix.parse().map_err(|_| ())?).ok_or(())
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl Conflist {
    /// A bridge that we make ourselves, addresses by host-local. The plugin is no gateway: it would
    /// make the whole machine forward packets. A replica that may go nowhere has no default route.
    pub fn own(bridge: &str, subnet: Subnet, leases: &Path, routed: bool) -> Self {
        let mut ipam = json!({
            "type": "host-local",
            "dataDir": leases,
            "ranges": [[{"subnet": subnet.to_string(), "gateway": subnet.gateway()}]],
        });
        if routed {
            ipam["routes"] = json!([{"dst": "0.0.0.0/0"}]);
        }
        let plugin = json!({
            "type": "bridge",
            "bridge": bridge,
            "isGateway": false,
            "ipMasq": false,
            "hairpinMode": false,
            "ipam": ipam,
        });
        let plugins = match plugin {
            Value::Object(plugin) => vec![plugin],
            _ => Vec::new(),
        };
        Self {
            cni_version: CNI_VERSION.into(),
            name: bridge.into(),
            plugins,
        }
    }

    /// The operator's.
    pub fn parse(text: &[u8]) -> Result<Self, ConflistError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(rename = "cniVersion", default = "default_version")]
            cni_version: String,
            name: String,
            plugins: Vec<Map<String, Value>>,
        }
        fn default_version() -> String {
            CNI_VERSION.into()
        }
        let file: File = serde_json::from_slice(text)?;
        let list = Self {
            cni_version: file.cni_version,
            name: file.name,
            plugins: file.plugins,
        };
        if list.plugins.is_empty() {
            return Err(ConflistError::Problem("its `plugins` is empty"));
        }
        if list.name.is_empty() || list.name.contains(['/', '\0']) || list.name.starts_with('.') {
            return Err(ConflistError::Problem("its `name` must be a plain word"));
        }
        let named = |plugin: &Map<String, Value>| {
            let kind = plugin.get("type").and_then(Value::as_str);
            kind.is_some_and(is_program)
        };
        if !list.plugins.iter().all(named) {
            let problem = "each of its `plugins` must have a `type`, the name of a program";
            return Err(ConflistError::Problem(problem));
        }
        Ok(list)
    }

    /// All programs that are needed, those for addresses too.
    pub fn programs(&self) -> Vec<&str> {
        let of = |plugin: &'_ Map<String, Value>, key: &str| -> Option<String> {
            plugin.get(key)?.get("type")?.as_str().map(str::to_owned)
        };
        let mut found: Vec<&str> = Vec::new();
        for plugin in &self.plugins {
            found.extend(kind(plugin));
            if of(plugin, "ipam").is_some() {
                found.extend(
                    plugin["ipam"]["type"]
                        .as_str()
                        .filter(|name| is_program(name)),
                );
            }
        }
        found
    }

    /// What one plugin is given on its standard input.
    pub fn input(&self, plugin: &Map<String, Value>, previous: Option<&Value>) -> Value {
        let mut input = plugin.clone();
        input.insert("cniVersion".into(), self.cni_version.clone().into());
        input.insert("name".into(), self.name.clone().into());
        if let Some(previous) = previous {
            input.insert("prevResult".into(), previous.clone());
        }
        Value::Object(input)
    }

    /// Bridges that its plugins attach replicas to.
    pub fn bridges(&self) -> Vec<String> {
        let bridges = self.plugins.iter().filter(|p| kind(p) == Some("bridge"));
        bridges
            .map(|plugin| {
                let name = plugin.get("bridge").and_then(Value::as_str);
                name.unwrap_or(DEFAULT_BRIDGE).to_owned()
            })
            .collect()
    }

    /// Folders of host-local's leases.
    pub fn lease_folders(&self) -> Vec<PathBuf> {
        let ipams = self.plugins.iter().filter_map(|plugin| plugin.get("ipam"));
        ipams
            .filter(|ipam| ipam.get("type").and_then(Value::as_str) == Some("host-local"))
            .map(|ipam| {
                let folder = ipam.get("dataDir").and_then(Value::as_str);
                Path::new(folder.unwrap_or(HOST_LOCAL_DIR)).join(&self.name)
            })
            .collect()
    }
}

pub fn kind(plugin: &Map<String, Value>) -> Option<&str> {
    plugin.get("type").and_then(Value::as_str)
}

/// A name, no path.
fn is_program(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.')
}

/// The routes of `/proc/net/route` that a subnet overlaps with, on other interfaces than `own`. The
/// default route overlaps with everything, and means nothing.
pub fn overlapping(routes: &str, subnet: Subnet, own: &str) -> Option<String> {
    routes.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (interface, network) = (*fields.first()?, hex(fields.get(1)?)?);
        let mask = hex(fields.get(7)?)?;
        let prefix = u32::from(mask).leading_ones() as u8;
        let clashes = interface != own && prefix > 0 && subnet.overlaps(network, prefix);
        clashes.then(|| format!("{network}/{prefix} on {interface}"))
    })
}

/// The kernel prints addresses as numbers of the machine's own byte order.
fn hex(text: &str) -> Option<Ipv4Addr> {
    let number = u32::from_str_radix(text, 16).ok()?;
    Some(Ipv4Addr::from(number.to_ne_bytes()))
}

/// The resolvers of a `resolv.conf` that can be reached from another network namespace.
pub fn resolvers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet() -> Subnet {
        "10.231.0.0/20".parse().expect("valid")
    }

    #[test]
    fn a_subnet_has_no_host_bits_and_room_for_more_than_the_node() {
        assert_eq!(subnet().gateway(), Ipv4Addr::new(10, 231, 0, 1));
        for bad in [
            "10.231.0.1/20",
            "10.231.0.0",
            "10.231.0.0/30",
            "10.0.0.0/7",
            "x/20",
            "::/20",
        ] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn our_own_list_routes_only_those_that_may_go_somewhere() {
        let list = |routed| Conflist::own("stokehold0", subnet(), Path::new("/leases"), routed);
        let routed = list(true);
        assert_eq!(routed.programs(), ["bridge", "host-local"]);
        assert_eq!(routed.bridges(), ["stokehold0"]);
        assert_eq!(routed.lease_folders(), [Path::new("/leases/stokehold0")]);
        assert_eq!(routed.plugins[0]["ipam"]["routes"][0]["dst"], "0.0.0.0/0");
        assert_eq!(list(false).plugins[0]["ipam"].get("routes"), None);
        let text = serde_json::to_vec(&routed).expect("JSON");
        assert_eq!(Conflist::parse(&text).expect("valid"), routed);
    }

    #[test]
    fn plugins_get_name_version_and_the_result_before_them() {
        let list = Conflist::own("b0", subnet(), Path::new("/leases"), true);
        let input = list.input(&list.plugins[0], Some(&json!({"ips": []})));
        assert_eq!(input["name"], "b0");
        assert_eq!(input["cniVersion"], "1.0.0");
        assert_eq!(input["prevResult"], json!({"ips": []}));
        assert_eq!(list.input(&list.plugins[0], None).get("prevResult"), None);
    }

    #[test]
    fn an_operators_list_must_name_programs_and_nothing_else() {
        let parse = |text: &str| Conflist::parse(text.as_bytes());
        let own = r#"{"cniVersion":"0.4.0","name":"fabric","disableCheck":true,
            "plugins":[{"type":"ptp","ipam":{"type":"host-local"}},{"type":"bridge"}]}"#;
        let list = parse(own).expect("valid");
        assert_eq!(list.programs(), ["ptp", "host-local", "bridge"]);
        assert_eq!(list.bridges(), ["cni0"]);
        assert_eq!(
            list.lease_folders(),
            [Path::new("/var/lib/cni/networks/fabric")]
        );
        for bad in [
            "{",
            r#"{"plugins":[{"type":"ptp"}]}"#,
            r#"{"name":"x","plugins":[]}"#,
            r#"{"name":"../x","plugins":[{"type":"ptp"}]}"#,
            r#"{"name":"x","plugins":[{"type":"../../bin/sh"}]}"#,
            r#"{"name":"x","plugins":[{}]}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_subnet_that_is_routed_elsewhere_is_found() {
        let little = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\n\
            stokehold0\t0000E70A\t00000000\t0001\t0\t0\t0\t00F0FFFF\t0\n\
            eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n";
        if cfg!(target_endian = "little") {
            assert_eq!(overlapping(little, subnet(), "stokehold0"), None);
            let found = overlapping(little, subnet(), "other0").expect("clash");
            assert_eq!(found, "10.231.0.0/20 on stokehold0");
            let wide: Subnet = "192.168.0.0/16".parse().expect("valid");
            let found = overlapping(little, wide, "stokehold0").expect("clash");
            assert_eq!(found, "192.168.2.0/24 on eth0");
        }
    }

    #[test]
    fn resolvers_on_loopback_are_none_that_a_replica_could_ask() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver 192.0.2.53\n nameserver ::1\n\
            nameserver 2001:db8::53\nsearch lan\nnameserver x\n";
        let found: Vec<String> = resolvers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.53", "2001:db8::53"]);
    }
}
