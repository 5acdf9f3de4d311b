//! `up --set DAEMON.KEY=VALUE`: keys of the daemons' configuration files beside those that `up` itself
//! decides. Pure.

use std::str::FromStr;

use toml::{Table, Value};

/// What `up` decides for each daemon: folders, addresses and names that must fit each other.
const OWN: [(&str, &[&str]); 3] = [
    (
        "scheduler",
        &[
            "data_dir",
            "pki_dir",
            "listen_http",
            "listen_quic",
            "advertise",
            "admin_listen",
            "runtimes_dirs",
        ],
    ),
    (
        "agent",
        &[
            "node",
            "scheduler",
            "pki_dir",
            "state_dir",
            "cache_dir",
            "run_dir",
            "log_dir",
            "containerd",
            "containerd_namespace",
            "gateway_group",
            "replica_uid_start",
            "replica_uid_count",
            "logshim",
            "cgroup_parent",
            "admin_listen",
            "network.bridge",
        ],
    ),
    (
        "gateway",
        &[
            "node",
            "scheduler",
            "pki_dir",
            "state_dir",
            "run_dir",
            "log_dir",
            "listen",
            "peer_listen",
            "advertise",
            "admin_listen",
        ],
    ),
];

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting {
    daemon: String,
    /// From the file's top to the key.
    path: Vec<String>,
    value: Value,
    /// As it was given.
    text: String,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidSetting {
    #[error(
        "{0:?} is not DAEMON.KEY=VALUE, such as scheduler.autoscaler.hold_min_seconds=30; daemons \
         are scheduler, agent and gateway"
    )]
    Form(String),
    #[error(
        "{key} is decided by `up` itself: see --data, --listen, --port-base, --node and --runtimes"
    )]
    Own { key: String },
}

impl FromStr for Setting {
    type Err = InvalidSetting;
    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        let form = || InvalidSetting::Form(text.chars().take(120).collect());
        let (key, value) = text.split_once('=').ok_or_else(form)?;
        let mut parts = key.trim().split('.').map(str::to_owned);
        let daemon = parts.next().ok_or_else(form)?;
        let path: Vec<String> = parts.collect();
        let named = |part: &String| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        let own = OWN.iter().find(|(name, _)| *name == daemon);
        let (Some((_, own)), Some(first)) = (own, path.first()) else {
            return Err(form());
        };
        if !path.iter().all(named) {
            return Err(form());
        }
        if own.contains(&first.as_str()) || own.contains(&path.join(".").as_str()) {
            let key = key.trim().to_owned();
            return Err(InvalidSetting::Own { key });
        }
        Ok(Self {
            value: value_of(value.trim()),
            daemon,
            path,
            text: text.to_owned(),
        })
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// As TOML reads it; what TOML does not read is a text, so that a shell needs no quotes within quotes.
fn value_of(text: &str) -> Value {
    let parsed: Option<Table> = format!("value = {text}").parse().ok();
    let mut parsed = parsed.filter(|table| table.len() == 1);
    let value = parsed.as_mut().and_then(|table| table.remove("value"));
    value.unwrap_or_else(|| Value::from(text))
}

/// Puts a daemon's settings into its configuration; of one key the last wins.
pub(super) fn apply(daemon: &str, settings: &[Setting], config: &mut Table) {
    for setting in settings.iter().filter(|it| it.daemon == daemon) {
        let (last, sections) = setting.path.split_last().expect("a setting has a key");
        let mut table = &mut *config;
        for section in sections {
            let inner = table
                .entry(section)
                .or_insert_with(|| Value::Table(Table::new()));
            if !inner.is_table() {
                *inner = Value::Table(Table::new());
            }
            table = inner.as_table_mut().expect("it has just been made one");
        }
        table.insert(last.clone(), setting.value.clone());
    }
}

/// Whether `up` decides this key itself.
#[cfg(test)]
pub(super) fn is_own(daemon: &str, key: &str) -> bool {
    OWN.iter()
        .any(|(name, keys)| *name == daemon && keys.contains(&key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(daemon: &str, settings: &[&str]) -> String {
        let settings: Vec<Setting> = settings
            .iter()
            .map(|text| text.parse().expect("a setting"))
            .collect();
        let mut config: Table = "a = 1".parse().expect("TOML");
        apply(daemon, &settings, &mut config);
        config.to_string()
    }

    #[test]
    fn settings_go_to_their_daemon_and_section_and_the_last_wins() {
        let text = applied(
            "scheduler",
            &[
                "scheduler.autoscaler.hold_min_seconds=30",
                "agent.memory_reserved=1GiB",
                "scheduler.autoscaler.hold_max_seconds = 40",
                "scheduler.autoscaler.hold_min_seconds=10",
                "scheduler.log.level=debug",
                "scheduler.log.format=\"json\"",
            ],
        );
        assert_eq!(
            text,
            "a = 1\n\n[autoscaler]\nhold_max_seconds = 40\nhold_min_seconds = 10\n\n\
             [log]\nformat = \"json\"\nlevel = \"debug\"\n"
        );
        assert_eq!(
            applied("gateway", &["agent.memory_reserved=1GiB"]),
            "a = 1\n"
        );
    }

    #[test]
    fn a_value_is_a_number_a_list_or_else_a_text() {
        assert_eq!(value_of("3"), Value::from(3));
        assert_eq!(value_of("true"), Value::from(true));
        assert_eq!(value_of("[1, 2]"), Value::from(vec![1, 2]));
        assert_eq!(value_of("20GiB"), Value::from("20GiB"));
        assert_eq!(
            value_of("info,agent=debug"),
            Value::from("info,agent=debug")
        );
        // Nothing else can be smuggled into the file.
        assert_eq!(value_of("1\nother = 2"), Value::from("1\nother = 2"));
    }

    #[test]
    fn what_is_no_setting_or_is_decided_by_up_is_refused() {
        for bad in [
            "",
            "x",
            "scheduler=1",
            "scheduler.=1",
            "planner.a=1",
            "scheduler.a b=1",
        ] {
            let refused = bad.parse::<Setting>();
            assert!(matches!(refused, Err(InvalidSetting::Form(_))), "{bad:?}");
        }
        let refused = "agent.run_dir=/tmp".parse::<Setting>().expect_err("own");
        assert!(refused.to_string().contains("agent.run_dir is decided"));
    }
}
