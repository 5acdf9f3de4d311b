//! The node's nftables rules for replicas, as one script that replaces them all. Pure.
//!
//! Two tables, both of the same name. `inet` decides by address who talks to whom: nobody, unless it is
//! the gateway to a replica's port, or a replica to its own allow-list. `bridge` makes sure that a frame
//! comes from the address that it says, and that no frame goes from one replica to another.
//!
//! What always holds: a replica that is in no rule reaches nobody and is reached by nobody, as our own
//! bridge is closed as a whole. Answers to what was allowed pass. An accept here takes no other table's
//! right to drop; a drop here is final.

use std::fmt::Write as _;
use std::net::IpAddr;

use shared::egress::{Destination, Egress, EgressRule, IpProtocol};
use shared::ids::ReplicaId;

/// Where clouds hand out credentials to whoever asks. A wider entry, such as 0.0.0.0/0, does not open
/// them; one that lies in them does.
const GUARDED: [(&str, u8); 3] = [("169.254.0.0", 16), ("fe80::", 10), ("fd00:ec2::254", 128)];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Both tables' name.
    pub table: String,
    /// Our own bridge; an operator's is shared with others.
    pub bridge: Option<String>,
    /// Nobody else on the node may connect to replicas.
    pub gateway_gid: u32,
    pub replicas: Vec<Guarded>,
}

/// A replica with an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    pub id: ReplicaId,
    pub addresses: Vec<IpAddr>,
    /// Where it listens.
    pub port: Option<u16>,
    pub egress: Egress,
    pub resolvers: Vec<IpAddr>,
    /// The node's ends of its interface.
    pub host_interfaces: Vec<String>,
    pub mac: Option<String>,
}

impl Guarded {
    fn addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        let all = self.addresses.iter().copied();
        all.filter(move |address| Family::of(*address) == family)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }
}

/// Takes the tables away, also where there are none.
pub fn removal(table: &str) -> String {
    let mut script = Script::default();
    script.clear(table);
    script.0
}

/// The script for `nft -f`: one transaction, so that at no moment there is a part of the rules.
pub fn render(set: &Ruleset) -> String {
    let mut script = Script::default();
    script.clear(&set.table);
    script.open(&format!("table inet {}", set.table));
    anti_spoofing(&mut script, set);
    input(&mut script, set);
    output(&mut script, set);
    forward(&mut script, set);
    masquerade(&mut script, set);
    script.close();
    script.open(&format!("table bridge {}", set.table));
    ports(&mut script, set);
    script.close();
    script.0
}

#[derive(Default)]
struct Script(String);

impl Script {
    fn clear(&mut self, table: &str) {
        for family in ["inet", "bridge"] {
            self.line(0, &format!("table {family} {table}"));
            self.line(0, &format!("delete table {family} {table}"));
        }
    }

    fn line(&mut self, depth: usize, text: &str) {
        let tabs = "\t".repeat(depth);
        writeln!(self.0, "{tabs}{text}").expect("a string takes everything");
    }

    fn open(&mut self, head: &str) {
        self.line(0, &format!("{head} {{"));
    }

    fn close(&mut self) {
        self.line(0, "}");
    }

    fn chain(&mut self, name: &str, rules: impl IntoIterator<Item = String>) {
        self.line(1, &format!("chain {name} {{"));
        for rule in rules {
            self.line(2, &rule);
        }
        self.line(1, "}");
    }
}

fn hook(hook: &str, kind: &str, priority: &str) -> String {
    format!("type {kind} hook {hook} priority {priority}; policy accept;")
}

/// `{ a, b }`, or nothing where there is nothing.
fn braces(elements: impl IntoIterator<Item = String>) -> Option<String> {
    let elements: Vec<String> = elements.into_iter().collect();
    (!elements.is_empty()).then(|| format!("{{ {} }}", elements.join(", ")))
}

fn all(set: &Ruleset, family: Family) -> Option<String> {
    let addresses = set.replicas.iter().flat_map(|r| r.addresses(family));
    braces(addresses.map(|address| address.to_string()))
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

/// Rules that hold for what comes from, or goes to, any replica.
fn every(set: &Ruleset, interface: &str, end: &str, verdict: &str) -> Vec<String> {
    let bridge = set.bridge.iter();
    let mut rules: Vec<String> = bridge
        .map(|bridge| format!("{interface} {} {verdict}", quoted(bridge)))
        .collect();
    for family in FAMILIES {
        if let Some(addresses) = all(set, family) {
            rules.push(format!("{} {end} {addresses} {verdict}", family.word()));
        }
    }
    rules
}

/// Where a replica's interface is no port of a bridge, what comes in on the node's end of it.
fn anti_spoofing(script: &mut Script, set: &Ruleset) {
    let mut rules = vec![hook("prerouting", "filter", "raw")];
    for replica in &set.replicas {
        for interface in &replica.host_interfaces {
            let from = format!("iifname {}", quoted(interface));
            for family in FAMILIES {
                let (word, own) = (family.word(), replica.addresses(family));
                let rule = match braces(own.map(|a| a.to_string())) {
                    Some(own) => format!("{from} {word} saddr != {own} drop"),
                    None => format!("{from} meta protocol {word} drop"),
                };
                rules.push(rule);
            }
        }
    }
    if let Some(bridge) = &set.bridge {
        let from = format!("iifname {}", quoted(bridge));
        for family in FAMILIES {
            let rule = match all(set, family) {
                Some(all) => format!("{from} {} saddr != {all} drop", family.word()),
                None => format!("{from} meta protocol {} drop", family.word()),
            };
            rules.push(rule);
        }
    }
    script.chain("anti_spoofing", rules);
}

const ANSWERS: &str = "ct state established,related accept";

/// Replica to node: answers, and resolvers on the node itself where it may ask them.
fn input(script: &mut Script, set: &Ruleset) {
    let mut rules = vec![ANSWERS.to_owned()];
    for replica in set.replicas.iter().filter(|r| r.egress.allows_dns()) {
        rules.extend(dns(replica));
    }
    rules.push("drop".to_owned());
    script.chain("replica_to_node", rules);
    let mut rules = vec![hook("input", "filter", "filter")];
    rules.extend(every(set, "iifname", "saddr", "goto replica_to_node"));
    script.chain("input", rules);
}

fn dns(replica: &Guarded) -> Vec<String> {
    let mut rules = Vec::new();
    for family in FAMILIES {
        let word = family.word();
        let own = braces(replica.addresses(family).map(|a| a.to_string()));
        let resolvers = replica.resolvers.iter();
        let resolvers = resolvers.filter(|a| Family::of(**a) == family);
        let resolvers = braces(resolvers.map(ToString::to_string));
        if let (Some(own), Some(resolvers)) = (own, resolvers) {
            rules.push(format!(
                "{word} saddr {own} {word} daddr {resolvers} meta l4proto {{ tcp, udp }} th dport 53 accept"
            ));
        }
    }
    rules
}

/// Node to replica: the gateway to its port, since TCP knows no file modes that would keep others out.
fn output(script: &mut Script, set: &Ruleset) {
    let mut rules = vec![ANSWERS.to_owned()];
    for replica in &set.replicas {
        let Some(port) = replica.port else { continue };
        for address in &replica.addresses {
            let word = Family::of(*address).word();
            rules.push(format!(
                "{word} daddr {address} tcp dport {port} meta skgid {} accept",
                set.gateway_gid
            ));
        }
    }
    rules.push("drop".to_owned());
    script.chain("node_to_replica", rules);
    let mut rules = vec![hook("output", "filter", "filter")];
    rules.extend(every(set, "oifname", "daddr", "goto node_to_replica"));
    script.chain("output", rules);
}

fn forward(script: &mut Script, set: &Ruleset) {
    for replica in &set.replicas {
        script.chain(&chain_of(&replica.id), allowed(replica));
    }
    // To another replica first: not even an answer goes there.
    let mut rules = every(set, "oifname", "daddr", "drop");
    rules.push(ANSWERS.to_owned());
    for family in FAMILIES {
        let of = |replica: &Guarded| {
            let chain = chain_of(&replica.id);
            let addresses: Vec<IpAddr> = replica.addresses(family).collect();
            addresses
                .into_iter()
                .map(move |address| format!("{address} : goto {chain}"))
        };
        if let Some(map) = braces(set.replicas.iter().flat_map(of)) {
            rules.push(format!("{} saddr vmap {map}", family.word()));
        }
    }
    rules.push("drop".to_owned());
    script.chain("from_replica", rules);
    script.chain("to_replica", [ANSWERS.to_owned(), "drop".to_owned()]);
    let mut rules = vec![hook("forward", "filter", "filter")];
    rules.extend(every(set, "iifname", "saddr", "goto from_replica"));
    rules.extend(every(set, "oifname", "daddr", "goto to_replica"));
    script.chain("forward", rules);
}

fn chain_of(id: &ReplicaId) -> String {
    format!("replica_{id}")
}

/// A replica's way out.
fn allowed(replica: &Guarded) -> Vec<String> {
    let mut narrow = Vec::new();
    let mut wide = Vec::new();
    for rule in replica.egress.rules() {
        match rule {
            EgressRule::Dns => narrow.extend(dns(replica)),
            EgressRule::To(to) if lies_in_guarded(to) => narrow.push(accept(to)),
            EgressRule::To(to) => wide.push(accept(to)),
        }
    }
    let mut rules = narrow;
    if !wide.is_empty() {
        for (network, prefix) in guarded() {
            let word = Family::of(network).word();
            rules.push(format!("{word} daddr {network}/{prefix} drop"));
        }
    }
    rules.extend(wide);
    rules.push("drop".to_owned());
    rules
}

fn guarded() -> impl Iterator<Item = (IpAddr, u8)> {
    let parse = |text: &str| text.parse().expect("an address");
    GUARDED
        .into_iter()
        .map(move |(network, prefix)| (parse(network), prefix))
}

fn lies_in_guarded(to: &Destination) -> bool {
    guarded().any(|(network, prefix)| to.lies_in(network, prefix))
}

fn accept(to: &Destination) -> String {
    let word = Family::of(to.network).word();
    let service = match (to.port, to.protocol) {
        (None, _) => String::new(),
        (Some(port), Some(IpProtocol::Tcp)) => format!(" tcp dport {port}"),
        (Some(port), Some(IpProtocol::Udp)) => format!(" udp dport {port}"),
        (Some(port), None) => format!(" meta l4proto {{ tcp, udp }} th dport {port}"),
    };
    if to.prefix == 0 {
        return format!(
            "meta nfproto {}{service} accept",
            match to.network {
                IpAddr::V4(_) => "ipv4",
                IpAddr::V6(_) => "ipv6",
            }
        );
    }
    format!("{word} daddr {}{service} accept", to.cidr())
}

/// Replicas' addresses mean nothing beyond the node.
fn masquerade(script: &mut Script, set: &Ruleset) {
    let mut rules = vec![hook("postrouting", "nat", "srcnat")];
    let elsewhere = match &set.bridge {
        Some(bridge) => format!("oifname != {} ", quoted(bridge)),
        None => String::new(),
    };
    for family in FAMILIES {
        let out = set.replicas.iter().filter(|r| !r.egress.is_none());
        let out = out.flat_map(|replica| replica.addresses(family));
        if let Some(out) = braces(out.map(|address| address.to_string())) {
            rules.push(format!(
                "{} saddr {out} {elsewhere}masquerade",
                family.word()
            ));
        }
    }
    script.chain("source_nat", rules);
}

/// Frames, at the ports of bridges: before a bridge learns or forwards anything.
fn ports(script: &mut Script, set: &Ruleset) {
    for replica in &set.replicas {
        script.chain(&chain_of(&replica.id), frames(replica));
    }
    let of = |replica: &Guarded| {
        let chain = chain_of(&replica.id);
        let interfaces = replica.host_interfaces.clone();
        interfaces
            .into_iter()
            .map(move |interface| format!("{} : goto {chain}", quoted(&interface)))
    };
    let mut rules = vec![hook("prerouting", "filter", "-300")];
    if let Some(map) = braces(set.replicas.iter().flat_map(of)) {
        rules.push(format!("iifname vmap {map}"));
    }
    script.chain("prerouting", rules);
    let interfaces = set.replicas.iter().flat_map(|r| &r.host_interfaces);
    let interfaces = braces(interfaces.map(|name| quoted(name)));
    let mut rules = vec![hook("forward", "filter", "-200")];
    if let Some(interfaces) = interfaces {
        rules.push(format!("iifname {interfaces} drop"));
        rules.push(format!("oifname {interfaces} drop"));
    }
    script.chain("forward", rules);
}

fn frames(replica: &Guarded) -> Vec<String> {
    let mut rules = Vec::new();
    if let Some(mac) = &replica.mac {
        rules.push(format!("ether saddr != {mac} drop"));
        rules.push(format!("ether type arp arp saddr ether != {mac} drop"));
    }
    let v4 = braces(replica.addresses(Family::V4).map(|a| a.to_string()));
    let v6 = braces(replica.addresses(Family::V6).map(|a| a.to_string()));
    let mut known = Vec::new();
    if let Some(own) = v4 {
        rules.push(format!("ether type arp arp saddr ip != {own} drop"));
        rules.push(format!("ether type ip ip saddr != {own} drop"));
        known.extend(["arp", "ip"].map(str::to_owned));
    }
    if v6.is_some() {
        // Neighbour discovery uses link-local addresses; the `inet` table checks what is routed.
        known.push("ip6".to_owned());
    }
    rules.push(match braces(known) {
        Some(known) => format!("ether type != {known} drop"),
        None => "drop".to_owned(),
    });
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn replica(n: u64, address: &str, port: Option<u16>, egress: &[&str]) -> Guarded {
        Guarded {
            id: ReplicaId::from_bits(n),
            addresses: vec![address.parse().expect("address")],
            port,
            egress: Egress::parse(egress).expect("valid"),
            resolvers: vec!["192.0.2.53".parse().expect("address")],
            host_interfaces: vec![format!("veth{n}")],
            mac: Some(format!("0a:58:0a:e7:00:{n:02x}")),
        }
    }

    fn ruleset(replicas: Vec<Guarded>) -> Ruleset {
        Ruleset {
            table: "stokehold0".into(),
            bridge: Some("stokehold0".into()),
            gateway_gid: 4711,
            replicas,
        }
    }

    #[test]
    fn the_rules_of_two_replicas_are_what_they_were() {
        let out = [
            "10.0.0.0/8:443",
            "dns",
            "0.0.0.0/0:80/tcp",
            "169.254.169.254",
        ];
        let set = ruleset(vec![
            replica(2, "10.231.0.2", Some(8080), &[]),
            replica(3, "10.231.0.3", None, &out),
        ]);
        insta::assert_snapshot!(render(&set));
    }

    #[test]
    fn without_replicas_the_bridge_is_closed_as_a_whole() {
        let script = render(&ruleset(Vec::new()));
        for rule in [
            "iifname \"stokehold0\" goto replica_to_node",
            "oifname \"stokehold0\" goto node_to_replica",
            "iifname \"stokehold0\" goto from_replica",
            "oifname \"stokehold0\" goto to_replica",
        ] {
            assert!(script.contains(rule), "{rule} is not in\n{script}");
        }
        assert!(!script.contains("vmap") && !script.contains("masquerade"));
    }

    #[test]
    fn a_wide_entry_does_not_open_where_clouds_hand_out_credentials() {
        let wide = allowed(&replica(1, "10.231.0.2", None, &["0.0.0.0/0"]));
        let position = |text: &str| wide.iter().position(|rule| rule.contains(text));
        let (guard, open) = (
            position("169.254.0.0/16 drop"),
            position("nfproto ipv4 accept"),
        );
        assert!(guard.expect("guarded") < open.expect("open"));
        let named = allowed(&replica(
            1,
            "10.231.0.2",
            None,
            &["169.254.169.254:80", "0.0.0.0/0"],
        ));
        assert!(named[0].contains("169.254.169.254") && named[0].ends_with("accept"));
    }

    #[test]
    fn a_replica_with_no_way_out_has_no_rule_but_drop_and_is_not_masqueraded() {
        let set = ruleset(vec![replica(1, "10.231.0.2", Some(8080), &[])]);
        assert_eq!(allowed(&set.replicas[0]), ["drop"]);
        assert!(!render(&set).contains("masquerade"));
    }

    #[test]
    fn on_an_operators_bridge_only_our_replicas_are_spoken_of() {
        let mut set = ruleset(vec![replica(1, "10.231.0.2", Some(8080), &["10.0.0.0/8"])]);
        set.bridge = None;
        let script = render(&set);
        assert!(!script.contains("ifname \"stokehold0\""));
        assert!(script.contains("ip saddr { 10.231.0.2 } goto from_replica"));
    }

    /// In a network namespace of its own, which goes with the thread.
    #[test]
    fn nft_takes_the_rules_and_takes_them_away() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let mut both = replica(
            3,
            "10.231.0.3",
            None,
            &["2001:db8::/32", "dns", "0.0.0.0/0"],
        );
        both.addresses.push("2001:db8::3".parse().expect("address"));
        both.resolvers
            .push("2001:db8::53".parse().expect("address"));
        let first = replica(
            2,
            "10.231.0.2",
            Some(8080),
            &["192.0.2.7:1/tcp", "10.0.0.0/8:2/udp"],
        );
        let mut foreign = ruleset(vec![first.clone(), both.clone()]);
        foreign.bridge = None;
        let scripts = [
            render(&ruleset(vec![first, both])),
            render(&foreign),
            render(&ruleset(Vec::new())),
            removal("stokehold0"),
        ];
        let take = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("runtime").block_on(async {
                for script in &scripts {
                    super::super::kernel::apply(script).await.expect(script);
                }
                let listing = super::super::kernel::listing("stokehold0").await;
                assert_eq!(listing.expect("listed"), None);
            });
        };
        std::thread::scope(|scope| scope.spawn(take).join().expect("taken"));
    }

    fn sets() -> impl Strategy<Value = Ruleset> {
        let entries = prop_oneof![
            Just("dns".to_owned()),
            (any::<[u8; 4]>(), 1u16..).prop_map(|([a, b, c, d], p)| format!("{a}.{b}.{c}.{d}:{p}")),
            Just("0.0.0.0/0".to_owned()),
            Just("2001:db8::/32".to_owned()),
        ];
        let replicas = (
            proptest::collection::vec(entries, 0..5),
            proptest::option::of(1024u16..),
        );
        proptest::collection::vec(replicas, 0..6).prop_map(|all| {
            let all = all.into_iter().enumerate().map(|(n, (egress, port))| {
                let egress: Vec<&str> = egress.iter().map(String::as_str).collect();
                replica(n as u64 + 2, &format!("10.231.0.{}", n + 2), port, &egress)
            });
            ruleset(all.collect())
        })
    }

    proptest! {
        /// Each chain that a replica's packets are sent to ends in a drop, and nothing is accepted for
        /// one whose list does not name it.
        #[test]
        fn every_way_ends_in_a_drop(set in sets()) {
            let script = render(&set);
            for replica in &set.replicas {
                let rules = allowed(replica);
                prop_assert_eq!(rules.last().map(String::as_str), Some("drop"));
                let accepts = rules.iter().filter(|rule| rule.ends_with("accept")).count();
                prop_assert!(accepts <= replica.egress.rules().len());
                prop_assert_eq!(accepts == 0, replica.egress.is_none());
            }
            for chain in ["replica_to_node", "node_to_replica", "from_replica", "to_replica"] {
                let (_, rest) = script.split_once(&format!("chain {chain} {{")).expect("chain");
                let (body, _) = rest.split_once("\t}\n").expect("its end");
                prop_assert_eq!(body.lines().last().map(str::trim), Some("drop"));
            }
            prop_assert_eq!(script.matches('{').count(), script.matches('}').count());
        }

        #[test]
        fn the_gateway_alone_is_let_in_and_only_to_the_port(set in sets()) {
            let script = render(&set);
            for replica in &set.replicas {
                let rule = format!("ip daddr {} tcp dport", replica.addresses[0]);
                match replica.port {
                    Some(port) => {
                        let whole = format!("{rule} {port} meta skgid 4711 accept");
                        prop_assert!(script.contains(&whole));
                    }
                    None => prop_assert!(!script.contains(&rule)),
                }
            }
        }
    }
}
