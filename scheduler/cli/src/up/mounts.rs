//! What is mounted under a folder, and taking it away.

use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// Taking one mount away may uncover another; more rounds than this mean that somebody mounts.
const ROUNDS: usize = 20;

/// Mount points at or under `folder`, newest first.
pub(super) fn under(folder: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?, folder))
}

/// Mount points of control groups.
pub(super) fn cgroup_roots() -> io::Result<Vec<PathBuf>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    let mut roots: Vec<PathBuf> = lines(&text)
        .filter(|line| matches!(line.kind, "cgroup" | "cgroup2"))
        .map(|line| line.point)
        .collect();
    roots.dedup();
    Ok(roots)
}

struct Line<'a> {
    point: PathBuf,
    kind: &'a str,
}

fn lines(mountinfo: &[u8]) -> impl Iterator<Item = Line<'_>> {
    mountinfo.split(|&b| b == b'\n').filter_map(|line| {
        let mut fields = line.split(|&b| b == b' ');
        let point = unescape(fields.nth(4)?);
        // Optional fields end with a dash.
        fields.find(|field| *field == b"-")?;
        let kind = std::str::from_utf8(fields.next()?).ok()?;
        Some(Line { point, kind })
    })
}

fn parse(mountinfo: &[u8], folder: &Path) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = lines(mountinfo)
        .map(|line| line.point)
        .filter(|point| point.starts_with(folder))
        .collect();
    points.reverse();
    points
}

/// The kernel writes space, tab, newline and backslash as octal.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Unmounts everything at or under `folder`. What is busy is detached: it goes when its last user
/// does, and nothing new finds it.
pub(super) fn remove_under(folder: &Path) -> io::Result<()> {
    let mut last = None;
    for _ in 0..ROUNDS {
        let points = under(folder)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points {
            let plain = umount2(&point, MntFlags::UMOUNT_NOFOLLOW);
            let gone = plain
                .or_else(|_| umount2(&point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH));
            if let Err(errno) = gone {
                last = Some((point, errno));
            }
        }
    }
    let (point, errno) = last.unwrap_or((folder.to_owned(), nix::errno::Errno::EBUSY));
    Err(io::Error::new(
        io::Error::from(errno).kind(),
        format!("unmount {}: {errno}", point.display()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
30 22 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
31 22 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
40 22 0:40 / /run/up-1/replicas/ab rw,nosuid shared:5 master:1 - tmpfs tmpfs rw,size=64k\n\
41 22 0:41 / /run/up-1/containerd/x/rootfs rw - overlay overlay rw\n\
42 22 0:42 / /run/up-10/other rw - tmpfs tmpfs rw\n\
43 22 0:43 / /run/up-1/a\\040b rw - tmpfs tmpfs rw\n";

    #[test]
    fn mounts_of_a_folder_are_found_newest_first_and_a_longer_name_is_another_folder() {
        assert_eq!(
            parse(MOUNTINFO, Path::new("/run/up-1")),
            [
                PathBuf::from("/run/up-1/a b"),
                "/run/up-1/containerd/x/rootfs".into(),
                "/run/up-1/replicas/ab".into(),
            ]
        );
    }

    #[test]
    fn control_groups_are_known_by_their_kind() {
        let kinds: Vec<&str> = lines(MOUNTINFO).map(|line| line.kind).collect();
        assert_eq!(kinds.iter().filter(|k| k.starts_with("cgroup")).count(), 2);
    }

    #[test]
    fn a_backslash_that_is_no_escape_stays() {
        assert_eq!(unescape(b"a\\1"), PathBuf::from("a\\1"));
        assert_eq!(unescape(b"a\\134b"), PathBuf::from("a\\b"));
    }
}
