//! The arguments: `key value` pairs, as containerd makes them from the log URI's query, in any order.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::journal::Limits;

/// The longest record is a 16 KiB piece whose every byte takes six in JSON: it must fit into a file.
const MIN_MAX_BYTES: u64 = 128 * 1024;
const MAX_FILES: u32 = 100;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) dir: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) limits: Limits,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ArgsError {
    NoValue(String),
    Unknown(String),
    Twice(String),
    Missing(&'static str),
    Bad {
        key: &'static str,
        value: String,
        want: String,
    },
}

impl fmt::Display for ArgsError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoValue(key) => {
                write!(
                    out,
                    "argument {key:?} has no value: arguments come in pairs, key and value"
                )
            }
            Self::Unknown(key) => {
                write!(
                    out,
                    "unknown key {key:?}: keys are dir, uid, gid, max-bytes and files"
                )
            }
            Self::Twice(key) => write!(out, "key {key:?} is given twice: leave one out"),
            Self::Missing(key) => write!(out, "key {key:?} is missing: add \"{key} VALUE\""),
            Self::Bad { key, value, want } => write!(out, "{key} {value:?}: must be {want}"),
        }
    }
}

impl Args {
    pub(crate) fn parse(arguments: &[OsString]) -> Result<Self, ArgsError> {
        let (mut dir, mut uid, mut gid, mut max_bytes, mut files) = (None, None, None, None, None);
        for pair in arguments.chunks(2) {
            let key = pair[0].to_string_lossy();
            let slot = match key.as_ref() {
                "dir" => &mut dir,
                "uid" => &mut uid,
                "gid" => &mut gid,
                "max-bytes" => &mut max_bytes,
                "files" => &mut files,
                _ => return Err(ArgsError::Unknown(key.into_owned())),
            };
            let Some(value) = pair.get(1) else {
                return Err(ArgsError::NoValue(key.into_owned()));
            };
            if slot.replace(value).is_some() {
                return Err(ArgsError::Twice(key.into_owned()));
            }
        }

        let dir = PathBuf::from(dir.ok_or(ArgsError::Missing("dir"))?);
        if !dir.is_absolute() {
            let want = "an absolute path".to_owned();
            return Err(ArgsError::Bad {
                key: "dir",
                value: dir.display().to_string(),
                want,
            });
        }
        // Root would defeat the point: what a replica wrote is never read by root. All ones is "leave it".
        let ids = (1, u64::from(u32::MAX) - 1);
        Ok(Self {
            dir,
            uid: number("uid", uid.ok_or(ArgsError::Missing("uid"))?, ids)?,
            gid: number("gid", gid.ok_or(ArgsError::Missing("gid"))?, ids)?,
            limits: Limits {
                max_bytes: match max_bytes {
                    Some(value) => number("max-bytes", value, (MIN_MAX_BYTES, 1 << 40))?,
                    None => Limits::default().max_bytes,
                },
                files: match files {
                    Some(value) => number("files", value, (1, u64::from(MAX_FILES)))?,
                    None => Limits::default().files,
                },
            },
        })
    }
}

fn number<N>(key: &'static str, value: &OsString, (min, max): (u64, u64)) -> Result<N, ArgsError>
where
    N: FromStr + Copy + Into<u64>,
{
    let parsed = value.to_str().and_then(|text| text.parse::<N>().ok());
    parsed
        .filter(|number| (min..=max).contains(&(*number).into()))
        .ok_or_else(|| ArgsError::Bad {
            key,
            value: value.to_string_lossy().into_owned(),
            want: format!("a whole number from {min} to {max}"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        Args::parse(&arguments).map_err(|err| err.to_string())
    }

    #[test]
    fn pairs_come_in_any_order_and_the_limits_have_defaults() {
        let args = parse("gid 8 dir /var/log/r1 uid 7").unwrap();
        let limits = Limits {
            max_bytes: 16 << 20,
            files: 4,
        };
        assert_eq!(
            args,
            Args {
                dir: "/var/log/r1".into(),
                uid: 7,
                gid: 8,
                limits
            }
        );
        let args = parse("files 2 max-bytes 131072 gid 8 dir /l uid 7").unwrap();
        assert_eq!(
            args.limits,
            Limits {
                max_bytes: 131_072,
                files: 2
            }
        );
    }

    #[test]
    fn every_wrong_argument_is_named_with_what_it_should_be() {
        for (line, want) in [
            (
                "dir",
                "argument \"dir\" has no value: arguments come in pairs, key and value",
            ),
            ("dir /l uid 7", "key \"gid\" is missing: add \"gid VALUE\""),
            ("uid 7 gid 8", "key \"dir\" is missing: add \"dir VALUE\""),
            ("dir /l dir /l", "key \"dir\" is given twice: leave one out"),
            (
                "path /l",
                "unknown key \"path\": keys are dir, uid, gid, max-bytes and files",
            ),
            (
                "dir logs uid 7 gid 8",
                "dir \"logs\": must be an absolute path",
            ),
            (
                "dir /l uid 0 gid 8",
                "uid \"0\": must be a whole number from 1 to 4294967294",
            ),
            (
                "dir /l uid 7 gid -1",
                "gid \"-1\": must be a whole number from 1 to 4294967294",
            ),
            (
                "dir /l uid 7 gid 4294967295",
                "gid \"4294967295\": must be a whole number from 1 to 4294967294",
            ),
            (
                "dir /l uid 7 gid 8 files 0",
                "files \"0\": must be a whole number from 1 to 100",
            ),
            (
                "dir /l uid 7 gid 8 max-bytes 16M",
                "max-bytes \"16M\": must be a whole number from 131072 to 1099511627776",
            ),
        ] {
            assert_eq!(parse(line), Err(want.to_owned()), "{line}");
        }
    }
}
