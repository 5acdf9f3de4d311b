//! Calls CNI plugins: the exec protocol, version 1.0.0.
//!
//! `loopback` comes first, on `lo`; then the conflist's plugins in order, each given the result of the
//! one before; DEL in reverse, each given the whole result.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::conflist::{Conflist, kind};
use super::program::{self, Answer, ProgramError};
use super::result::{self, Link, ResultError};

/// A plugin may wait for others on host-local's lock.
const LIMIT: Duration = Duration::from_secs(20);
pub const IFNAME: &str = "eth0";
const LOOPBACK: &str = "loopback";

#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error(
        "CNI plugin {name:?} is in none of {folders}: install it (package \
         containernetworking-plugins), or name its folder in network.cni_bin_dirs of agent.toml"
    )]
    Missing { name: String, folders: String },
    #[error("CNI plugin {name:?} cannot {command} the replica's interface: {said}")]
    Failed {
        name: String,
        command: &'static str,
        said: String,
    },
    #[error("CNI plugin {name:?}")]
    Answer {
        name: String,
        #[source]
        source: ResultError,
    },
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// The container that plugins are told of.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub container: &'a str,
    pub netns: &'a Path,
}

#[derive(Clone, Debug)]
pub struct Plugins {
    folders: Vec<PathBuf>,
}

impl Plugins {
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders }
    }

    /// Whether everything is there that a list needs.
    pub fn check(&self, list: &Conflist) -> Result<(), PluginError> {
        let mut needed = vec![LOOPBACK];
        needed.extend(list.programs());
        needed
            .into_iter()
            .try_for_each(|name| self.find(name).map(drop))
    }

    fn find(&self, name: &str) -> Result<PathBuf, PluginError> {
        program::find(name, &self.folders).ok_or_else(|| {
            let folders: Vec<String> = self
                .folders
                .iter()
                .map(|f| f.display().to_string())
                .collect();
            PluginError::Missing {
                name: name.to_owned(),
                folders: folders.join(", "),
            }
        })
    }

    pub async fn add(
        &self,
        list: &Conflist,
        target: Target<'_>,
    ) -> Result<(Value, Link), PluginError> {
        let lo = loopback(list);
        self.call(&lo, "ADD", "lo", &lo.plugins[0], None, target)
            .await?;
        let mut last = (Value::Null, Link::default());
        for plugin in &list.plugins {
            let previous = (!last.0.is_null()).then_some(&last.0);
            let answer = self
                .call(list, "ADD", IFNAME, plugin, previous, target)
                .await?;
            last = result::parse(&answer.stdout, IFNAME).map_err(|source| PluginError::Answer {
                name: kind(plugin).unwrap_or_default().to_owned(),
                source,
            })?;
        }
        Ok(last)
    }

    /// Succeeds as well where the namespace is gone, or nothing was ever made. loopback's goes with its
    /// namespace.
    pub async fn del(
        &self,
        list: &Conflist,
        made: Option<&Value>,
        target: Target<'_>,
    ) -> Result<(), PluginError> {
        for plugin in list.plugins.iter().rev() {
            self.call(list, "DEL", IFNAME, plugin, made, target).await?;
        }
        Ok(())
    }

    async fn call(
        &self,
        list: &Conflist,
        command: &'static str,
        ifname: &str,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
        target: Target<'_>,
    ) -> Result<Answer, PluginError> {
        let name = kind(plugin).unwrap_or_default();
        let path = self.find(name)?;
        let folders = std::env::join_paths(&self.folders).unwrap_or_default();
        // A namespace that is gone is not to be looked for.
        let netns = if target.netns.exists() {
            target.netns.display().to_string()
        } else {
            String::new()
        };
        let environment = [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", target.container.to_owned()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", ifname.to_owned()),
            ("CNI_PATH", folders.to_string_lossy().into_owned()),
        ];
        let input = list.input(plugin, previous).to_string();
        let answer = program::run(&path, &[], &environment, input.as_bytes(), LIMIT).await?;
        if answer.success {
            return Ok(answer);
        }
        Err(PluginError::Failed {
            name: name.to_owned(),
            command: if command == "ADD" { "make" } else { "remove" },
            said: result::failure(&answer.stdout, &answer.stderr),
        })
    }
}

fn loopback(list: &Conflist) -> Conflist {
    let mut plugin = Map::new();
    plugin.insert("type".into(), LOOPBACK.into());
    Conflist {
        cni_version: list.cni_version.clone(),
        name: LOOPBACK.into(),
        plugins: vec![plugin],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    /// A plugin that notes each call, and answers with an address.
    const NOTING: &str = r#"#!/bin/sh
input=$(cat)
echo "${0##*/} $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME [$CNI_NETNS] $input" >>"${0%/*}/calls"
echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'"${0##*/}"'"}],"ips":[{"address":"10.0.0.2/24"}]}'
"#;
    const FAILING: &str = "#!/bin/sh\necho '{\"code\":7,\"msg\":\"no room\"}'\nexit 1\n";

    fn folder(programs: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        for (name, text) in programs {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        }
        folder
    }

    fn list() -> Conflist {
        let text = r#"{"name":"net","plugins":[{"type":"one"},{"type":"two","x":1}]}"#;
        Conflist::parse(text.as_bytes()).expect("valid")
    }

    fn target(netns: &Path) -> Target<'_> {
        Target {
            container: "c1",
            netns,
        }
    }

    #[tokio::test]
    async fn add_chains_results_and_del_goes_backwards_with_the_whole_one() {
        let folder = folder(&[("loopback", NOTING), ("one", NOTING), ("two", NOTING)]);
        let plugins = Plugins::new(vec![folder.path().into()]);
        plugins.check(&list()).expect("all there");
        let netns = folder.path().join("one");
        let (made, link) = plugins.add(&list(), target(&netns)).await.expect("added");
        assert_eq!(link.host_interfaces, ["two"]);
        let gone = Path::new("/nonexistent/netns");
        plugins
            .del(&list(), Some(&made), target(gone))
            .await
            .expect("removed");
        let calls = fs::read_to_string(folder.path().join("calls")).expect("calls");
        let calls: Vec<&str> = calls.lines().collect();
        let begins = |n: usize, text: &str| assert!(calls[n].starts_with(text), "{}", calls[n]);
        begins(0, "loopback ADD c1 lo [/");
        begins(1, "one ADD c1 eth0 [/");
        begins(2, "two ADD c1 eth0 [/");
        begins(3, "two DEL c1 eth0 [] ");
        begins(4, "one DEL c1 eth0 [] ");
        assert_eq!(calls.len(), 5);
        assert!(!calls[1].contains("prevResult"));
        assert!(
            calls[2].contains(r#""prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"one"}"#)
        );
        for call in [calls[3], calls[4]] {
            assert!(call.contains(r#""interfaces":[{"name":"two"}]"#), "{call}");
        }
    }

    #[tokio::test]
    async fn a_plugin_that_fails_or_is_missing_is_named_with_what_it_said_or_where_it_comes_from() {
        let folder = folder(&[("loopback", NOTING), ("one", FAILING)]);
        let plugins = Plugins::new(vec![folder.path().into()]);
        let missing = plugins
            .check(&list())
            .expect_err("two is missing")
            .to_string();
        assert!(missing.contains("\"two\"") && missing.contains("containernetworking-plugins"));
        let netns = Path::new("/nonexistent/netns");
        let failed = plugins
            .add(&list(), target(netns))
            .await
            .expect_err("fails");
        assert_eq!(
            failed.to_string(),
            "CNI plugin \"one\" cannot make the replica's interface: no room"
        );
    }
}
