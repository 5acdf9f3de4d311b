//! What an image's reference says: which registry, which repository, which tag or digest. Pure.

use shared::digest::OciDigest;
use shared::ids::{IMPORT_ONLY, ImageRef};

/// The registry whose name everybody knows, and where it really is.
pub(crate) const DOCKER_HUB: &str = "docker.io";
pub(crate) const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// As people write it, `docker.io`; where its bytes come from is said by `hosts.toml`.
    pub host: String,
    pub repository: String,
    pub version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    Tag(String),
    Digest(OciDigest),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    #[error(
        "image {reference} is of {IMPORT_ONLY}, which is no registry: bring it in with `stokehold image import FILE`"
    )]
    ImportOnly { reference: ImageRef },
    #[error(
        "image {reference} names no registry: write the whole reference, such as docker.io/library/{reference}, or `stokehold image import` it"
    )]
    NoRegistry { reference: ImageRef },
    #[error("image reference {reference} {problem}")]
    Malformed {
        reference: ImageRef,
        problem: &'static str,
    },
}

impl Reference {
    pub fn parse(image: &ImageRef) -> Result<Self, InvalidReference> {
        let reference = || image.clone();
        let Some(host) = image.registry() else {
            let local = format!("{IMPORT_ONLY}/");
            return Err(if image.as_str().starts_with(&local) {
                let reference = reference();
                InvalidReference::ImportOnly { reference }
            } else {
                let reference = reference();
                InvalidReference::NoRegistry { reference }
            });
        };
        let malformed = |problem| InvalidReference::Malformed {
            reference: reference(),
            problem,
        };
        if !is_host(host) {
            return Err(malformed("has a registry that is not HOST or HOST:PORT"));
        }
        let rest = &image.as_str()[host.len() + 1..];
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => {
                let digest = OciDigest::parse(digest)
                    .map_err(|_| malformed("has a digest that is not sha256: and 64 hex digits"))?;
                (rest, Some(digest))
            }
            None => (rest, None),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) if is_tag(tag) => (repository, Some(tag)),
            Some(_) => {
                return Err(malformed(
                    "has a tag that is not 1 to 128 of A-Z a-z 0-9 _ . -",
                ));
            }
            None => (rest, None),
        };
        if !is_repository(repository) {
            return Err(malformed(
                "has a repository that is not made of a-z 0-9 . _ - and single slashes",
            ));
        }
        let repository = if host == DOCKER_HUB && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        Ok(Self {
            host: host.to_owned(),
            repository,
            version: match (digest, tag) {
                (Some(digest), _) => Version::Digest(digest),
                (None, tag) => Version::Tag(tag.unwrap_or("latest").to_owned()),
            },
        })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Version::Tag(tag) => f.write_str(tag),
            Version::Digest(digest) => digest.fmt(f),
        }
    }
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') => (name, Some(port)),
        _ => (text, None),
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let address = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok());
    let named = !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain);
    let port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    (named || address) && port
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&text.len())
        && word(text.as_bytes()[0])
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_repository(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.split('/').all(|part| {
        let bytes = part.as_bytes();
        !bytes.is_empty()
            && plain(bytes[0])
            && plain(bytes[bytes.len() - 1])
            && bytes
                .iter()
                .all(|&b| plain(b) || matches!(b, b'.' | b'_' | b'-'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Reference, InvalidReference> {
        Reference::parse(&ImageRef::parse(text).expect("an image reference"))
    }

    #[test]
    fn a_reference_says_registry_repository_and_tag_or_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let by_digest = format!("ghcr.io/o/r:1@{digest}");
        for (text, host, repository, version) in [
            ("ghcr.io/o/r:1.2", "ghcr.io", "o/r", "1.2"),
            ("localhost/r", "localhost", "r", "latest"),
            ("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000", "a/b/c", "x"),
            ("[::1]:5000/a:x", "[::1]:5000", "a", "x"),
            ("docker.io/nginx:1", "docker.io", "library/nginx", "1"),
            (
                "docker.io/vllm/vllm-openai",
                "docker.io",
                "vllm/vllm-openai",
                "latest",
            ),
            (&by_digest, "ghcr.io", "o/r", &digest),
        ] {
            let parsed = parse(text).expect(text);
            let version_text = parsed.version.to_string();
            assert_eq!(
                (
                    parsed.host.as_str(),
                    parsed.repository.as_str(),
                    version_text.as_str()
                ),
                (host, repository, version),
                "{text}"
            );
        }
    }

    #[test]
    fn what_names_no_registry_says_how_to_name_one() {
        for text in ["nginx:1", "team/nginx:1"] {
            let refused = parse(text).expect_err(text).to_string();
            assert!(
                refused.contains(&format!("docker.io/library/{text}")),
                "{refused}"
            );
        }
        let refused = parse("stokehold.local/x:1").expect_err("import only");
        assert!(refused.to_string().contains("image import"), "{refused}");
    }

    #[test]
    fn malformed_parts_are_named() {
        for (text, word) in [
            ("ghcr.io/", "repository"),
            ("ghcr.io/A:1", "repository"),
            ("ghcr.io/a//b", "repository"),
            ("ghcr.io/../b", "repository"),
            ("ghcr.io/a?x=1", "repository"),
            ("ghcr.io/a:", "tag"),
            ("ghcr.io/a:x/y", "tag"),
            ("ghcr.io/a@sha256:12", "digest"),
            ("user@ghcr.io/a:1", "registry"),
            ("ghcr.io:0/a", "registry"),
            ("ghcr.io:x/a", "registry"),
        ] {
            let refused = parse(text).expect_err(text).to_string();
            assert!(refused.contains(word), "{text}: {refused}");
        }
    }
}
