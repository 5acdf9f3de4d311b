//! Takes away what the agent made for replicas with interfaces and only a reboot would: the bridge, and
//! the tables of rules. Namespaces are mounts below `/run`, and go with those; interfaces go with their
//! namespaces; leases lie in the agent's own folder.

use std::io;
use std::process::{Command, Stdio};

use super::layout::Layout;
use super::programs;

/// Where `ip` or `nft` is not installed, the agent has made nothing with it either.
pub(super) fn remove(layout: &Layout) -> io::Result<()> {
    let bridge = layout.bridge();
    let bridge = bridge.as_str();
    for family in ["inet", "bridge"] {
        if succeeds("nft", &["list", "table", family, bridge])? {
            must("nft", &["delete", "table", family, bridge])?;
        }
    }
    if succeeds("ip", &["link", "show", "dev", bridge])? {
        must("ip", &["link", "delete", bridge])?;
    }
    Ok(())
}

fn succeeds(program: &str, arguments: &[&str]) -> io::Result<bool> {
    let Some(path) = programs::system(program) else {
        return Ok(false);
    };
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::null());
    Ok(command.output()?.status.success())
}

fn must(program: &str, arguments: &[&str]) -> io::Result<()> {
    match succeeds(program, arguments)? {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "{program} {} does not succeed",
            arguments.join(" ")
        ))),
    }
}
