//! host-local's leases: one file an address, which names the container that has it.
//!
//! A lease goes with its container's DEL. What no DEL will ever be called for (the record of its
//! attachment was lost, or a machine died at the wrong moment) is taken away when the agent starts.

use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::Path;

/// An id and an interface's name.
const MAX_LEASE_BYTES: u64 = 4096;

/// Removes the leases in `folder` whose container `is_stray`; returns their addresses. A folder that is
/// not there has none.
pub fn clean(folder: &Path, is_stray: impl Fn(&str) -> bool) -> io::Result<Vec<IpAddr>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut freed = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        // `lock` and `last_reserved_ip.0` lie there too.
        let Some(address) = name.to_str().and_then(|name| name.parse::<IpAddr>().ok()) else {
            continue;
        };
        let mut text = String::new();
        fs::File::open(entry.path())?
            .take(MAX_LEASE_BYTES)
            .read_to_string(&mut text)?;
        if holder(&text).is_some_and(&is_stray) {
            fs::remove_file(entry.path())?;
            freed.push(address);
        }
    }
    freed.sort();
    Ok(freed)
}

/// The container's id is the first line; the interface's name may follow.
fn holder(text: &str) -> Option<&str> {
    let first = text.lines().next()?.trim();
    (!first.is_empty()).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leases_of_strays_go() {
        let folder = tempfile::tempdir().expect("folder");
        for (name, text) in [
            ("10.231.0.2", "stokehold-a-1\r\neth0"),
            ("10.231.0.3", "stokehold-a-2\r\neth0"),
            ("10.231.0.4", "somebody-elses\r\neth0"),
            ("10.231.0.5", "stokehold-a-2"),
            ("10.231.0.6", ""),
            ("last_reserved_ip.0", "10.231.0.5"),
            ("lock", ""),
        ] {
            fs::write(folder.path().join(name), text).expect("written");
        }
        let freed = clean(folder.path(), |id| id == "stokehold-a-2").expect("cleaned");
        let expected: Vec<IpAddr> = ["10.231.0.3", "10.231.0.5"]
            .map(|a| a.parse().expect("address"))
            .into();
        assert_eq!(freed, expected);
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 5);
        let again = clean(folder.path(), |id| id == "stokehold-a-2").expect("cleaned");
        assert!(again.is_empty());
    }

    #[test]
    fn a_folder_that_is_not_there_has_no_leases() {
        let freed = clean(Path::new("/nonexistent/leases"), |_| true).expect("nothing");
        assert!(freed.is_empty());
    }
}
