//! `hosts.toml`, as containerd's docs/hosts.md has it: where the bytes of a registry's images come from.
//!
//! The folder of a registry is `HOST_PORT_`, `HOST:PORT` or `_default`, whichever is there first. Hosts
//! are tried in the file's order, then `server`. Without a file the registry itself is meant, by HTTPS
//! (by HTTP on this machine, as containerd does), with the certificates beside it in Docker's naming.
//! All files are read here, so that whoever asks may give up its rights before it uses the network.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::de::DeTable;

use crate::reference::{DOCKER_HUB, DOCKER_HUB_HOST};

const FILE: &str = "hosts.toml";
/// A page of text; certificates are some KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_HOSTS: usize = 16;
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// One place to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Without a slash at its end: `https://registry.example/v2`.
    pub base: Url,
    /// May say which digest a tag means.
    pub resolve: bool,
    pub pull: bool,
    /// PEM, beside the system's.
    pub ca: Vec<Vec<u8>>,
    /// A certificate and its key, PEM.
    pub client: Option<Vec<u8>>,
    pub skip_verify: bool,
    pub headers: Vec<(String, String)>,
    pub dial_timeout: Duration,
    pub proxy: Option<Url>,
    /// The registry that a mirror is asked for.
    pub namespace: Option<String>,
}

impl Host {
    /// `registry.example:5000`, as credentials are kept by it.
    pub fn authority(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        match self.base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is over the limit of {MAX_FILE_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is wrong: {problem}", path.display())]
    Wrong { path: PathBuf, problem: String },
}

/// What stands at the top for `server`, and in `[host."URL"]` for a mirror. Unknown keys are left out, as
/// containerd does: later versions have more.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    capabilities: Option<Vec<String>>,
    ca: Option<Paths>,
    client: Option<Clients>,
    skip_verify: bool,
    header: std::collections::BTreeMap<String, Values>,
    override_path: bool,
    dial_timeout: Option<String>,
    proxy: Option<String>,
}

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    own: Entry,
    #[serde(default)]
    host: std::collections::BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Clients {
    One(PathBuf),
    Many(Vec<PathBuf>),
    Pairs(Vec<(PathBuf, PathBuf)>),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

/// Where to ask for the images of `registry`, in turn. Never empty.
pub fn load(hosts_dir: &Path, registry: &str) -> Result<Vec<Host>, HostsError> {
    let Some(folder) = folder(hosts_dir, registry)? else {
        return Ok(vec![default_host(registry)]);
    };
    let path = folder.join(FILE);
    match read(&path)? {
        Some(bytes) => parse(&path, &bytes, registry),
        None => {
            let mut host = default_host(registry);
            docker_certificates(&folder, &mut host)?;
            Ok(vec![host])
        }
    }
}

/// Where somebody would write `hosts.toml` for this registry, for messages.
pub fn file_for(hosts_dir: &Path, registry: &str) -> PathBuf {
    hosts_dir.join(folder_name(registry)).join(FILE)
}

fn folder_name(registry: &str) -> String {
    match registry.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !port.ends_with(']') => format!("{host}_{port}_"),
        _ => registry.to_owned(),
    }
}

fn folder(hosts_dir: &Path, registry: &str) -> Result<Option<PathBuf>, HostsError> {
    for name in [folder_name(registry).as_str(), registry, "_default"] {
        let path = hosts_dir.join(name);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => return Ok(Some(path)),
            Ok(_) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(source) => return Err(HostsError::Read { path, source }),
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, HostsError> {
    let failed = |source| HostsError::Read {
        path: path.to_owned(),
        source,
    };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            let path = path.to_owned();
            Err(HostsError::TooLarge { path })
        }
        Ok(_) => std::fs::read(path).map(Some).map_err(failed),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

fn needed(path: &Path) -> Result<Vec<u8>, HostsError> {
    read(path)?.ok_or_else(|| HostsError::Read {
        path: path.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    })
}

fn default_host(registry: &str) -> Host {
    let real = if registry == DOCKER_HUB {
        DOCKER_HUB_HOST
    } else {
        registry
    };
    let url = format!("{}://{real}/v2", default_scheme(registry));
    Host {
        base: Url::parse(&url).expect("a reference's registry is a host with or without a port"),
        resolve: true,
        pull: true,
        ca: Vec::new(),
        client: None,
        skip_verify: false,
        headers: Vec::new(),
        dial_timeout: DIAL_TIMEOUT,
        proxy: None,
        namespace: None,
    }
}

/// Plain HTTP never leaves the machine unless `hosts.toml` says so.
fn default_scheme(registry: &str) -> &'static str {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let local = host == "localhost"
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if local && port.is_some_and(|port| port != "443") {
        "http"
    } else {
        "https"
    }
}

fn parse(path: &Path, bytes: &[u8], registry: &str) -> Result<Vec<Host>, HostsError> {
    let wrong = |problem: String| HostsError::Wrong {
        path: path.to_owned(),
        problem,
    };
    let text = std::str::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8".into()))?;
    let mut file: File =
        toml::from_str(text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
    let order = order(text);
    if order.len() > MAX_HOSTS {
        return Err(wrong(format!("it has more than {MAX_HOSTS} hosts")));
    }
    let read = Reader { path, registry };
    let mut hosts = Vec::new();
    for url in order {
        if let Some(entry) = file.host.remove(&url) {
            hosts.push(read.host(&url, entry)?);
        }
    }
    hosts.push(match &file.server {
        Some(server) => read.host(server, file.own)?,
        None => {
            let default = default_host(registry);
            let mut host = read.host(default.base.as_str(), file.own)?;
            host.namespace = None;
            host
        }
    });
    Ok(hosts)
}

/// The hosts in the file's order, which TOML's tables do not keep.
fn order(text: &str) -> Vec<String> {
    let Ok(document) = DeTable::parse(text) else {
        return Vec::new();
    };
    let hosts = document.get_ref().get("host");
    let Some(hosts) = hosts.and_then(|hosts| hosts.get_ref().as_table()) else {
        return Vec::new();
    };
    let mut keys: Vec<(usize, String)> = hosts
        .keys()
        .map(|key| (key.span().start, key.get_ref().to_string()))
        .collect();
    keys.sort();
    keys.into_iter().map(|(_, name)| name).collect()
}

struct Reader<'a> {
    path: &'a Path,
    registry: &'a str,
}

impl Reader<'_> {
    fn wrong(&self, problem: String) -> HostsError {
        HostsError::Wrong {
            path: self.path.to_owned(),
            problem,
        }
    }

    fn host(&self, url: &str, entry: Entry) -> Result<Host, HostsError> {
        let mut base = self.url(url)?;
        if base.host_str() == Some(DOCKER_HUB) {
            base.set_host(Some(DOCKER_HUB_HOST))
                .map_err(|_| self.wrong(format!("host {url:?} is not a URL")))?;
        }
        let path = base.path().trim_end_matches('/').to_owned();
        if entry.override_path || path.ends_with("/v2") {
            base.set_path(&path);
        } else {
            base.set_path(&format!("{path}/v2"));
        }
        let able = |what: &str| {
            let named = entry.capabilities.as_ref();
            named.is_none_or(|list| list.iter().any(|name| name == what))
        };
        let mut host = Host {
            resolve: able("resolve"),
            pull: able("pull"),
            ca: self.ca(entry.ca)?,
            client: self.client(url, entry.client)?,
            skip_verify: entry.skip_verify,
            headers: headers(entry.header),
            dial_timeout: self.dial_timeout(entry.dial_timeout.as_deref())?,
            proxy: entry.proxy.map(|proxy| self.proxy(&proxy)).transpose()?,
            namespace: None,
            base,
        };
        let authority = host.authority();
        let itself = authority == self.registry
            || (self.registry == DOCKER_HUB && authority == DOCKER_HUB_HOST);
        host.namespace = (!itself).then(|| self.registry.to_owned());
        Ok(host)
    }

    fn url(&self, text: &str) -> Result<Url, HostsError> {
        let whole = if text.contains("://") {
            text.to_owned()
        } else {
            format!("{}://{text}", default_scheme(text))
        };
        let url = Url::parse(&whole).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.host_str().is_some_and(|host| !host.is_empty())
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        url.ok_or_else(|| {
            self.wrong(format!(
                "host {text:?} is not https://HOST[:PORT][/PATH] (or http://, for plain HTTP); \
                 credentials belong in the agent's auth_file"
            ))
        })
    }

    fn proxy(&self, text: &str) -> Result<Url, HostsError> {
        Url::parse(text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| self.wrong("proxy is not an http:// or https:// URL".into()))
    }

    fn at(&self, path: &Path) -> PathBuf {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        folder.join(path)
    }

    fn ca(&self, paths: Option<Paths>) -> Result<Vec<Vec<u8>>, HostsError> {
        let paths = match paths {
            None => Vec::new(),
            Some(Paths::One(path)) => vec![path],
            Some(Paths::Many(paths)) => paths,
        };
        paths.iter().map(|path| needed(&self.at(path))).collect()
    }

    /// The first one: which of several a server wants is not known before it is asked.
    fn client(&self, url: &str, clients: Option<Clients>) -> Result<Option<Vec<u8>>, HostsError> {
        let pair = match clients {
            None => None,
            Some(Clients::One(path)) => Some((path, PathBuf::new())),
            Some(Clients::Many(paths)) => paths.into_iter().next().map(|p| (p, PathBuf::new())),
            Some(Clients::Pairs(pairs)) => pairs.into_iter().next(),
            Some(Clients::Other(_)) => {
                return Err(self.wrong(format!(
                    "client of {url:?} is not a path, a list of paths or a list of [certificate, key]"
                )));
            }
        };
        let Some((certificate, key)) = pair else {
            return Ok(None);
        };
        let mut pem = needed(&self.at(&certificate))?;
        if !key.as_os_str().is_empty() {
            pem.push(b'\n');
            pem.extend(needed(&self.at(&key))?);
        }
        Ok(Some(pem))
    }

    /// Go's form of durations, of which one number and one unit are understood.
    fn dial_timeout(&self, text: Option<&str>) -> Result<Duration, HostsError> {
        let Some(text) = text else {
            return Ok(DIAL_TIMEOUT);
        };
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            _ => 0.0,
        };
        let seconds = digits.parse::<f64>().unwrap_or(0.0) * unit;
        if seconds > 0.0 && seconds <= 600.0 {
            return Ok(Duration::from_secs_f64(seconds));
        }
        Err(self.wrong(format!(
            "dial_timeout {text:?} is not a time of at most ten minutes, such as \"1s\" or \"500ms\""
        )))
    }
}

fn headers(entries: std::collections::BTreeMap<String, Values>) -> Vec<(String, String)> {
    let entries = entries.into_iter().flat_map(|(name, values)| {
        let values = match values {
            Values::One(value) => vec![value],
            Values::Many(values) => values,
        };
        values.into_iter().map(move |value| (name.clone(), value))
    });
    entries.collect()
}

/// `*.crt` are authorities, `NAME.cert` with `NAME.key` is a client's certificate.
fn docker_certificates(folder: &Path, host: &mut Host) -> Result<(), HostsError> {
    let failed = |source| HostsError::Read {
        path: folder.to_owned(),
        source,
    };
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => host.ca.push(needed(&path)?),
            Some("cert") if host.client.is_none() => {
                let mut pem = needed(&path)?;
                pem.push(b'\n');
                pem.extend(needed(&path.with_extension("key"))?);
                host.client = Some(pem);
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hosts for `registry` where `folder` has these files.
    fn hosts(
        registry: &str,
        folder: &str,
        files: &[(&str, &str)],
    ) -> Result<Vec<Host>, HostsError> {
        let root = tempfile::tempdir().expect("folder");
        let folder = root.path().join(folder);
        std::fs::create_dir(&folder).expect("folder");
        for (name, text) in files {
            std::fs::write(folder.join(name), text).expect("file");
        }
        load(root.path(), registry)
    }

    fn bases(registry: &str, folder: &str, text: &str) -> Vec<String> {
        let hosts = hosts(registry, folder, &[(FILE, text)]).expect("valid");
        hosts.iter().map(|host| host.base.to_string()).collect()
    }

    fn base_without_a_file(registry: &str) -> String {
        let hosts = load(Path::new("/nonexistent"), registry).expect("the default");
        hosts[0].base.to_string()
    }

    #[test]
    fn without_a_file_the_registry_itself_is_asked() {
        for (registry, base) in [
            ("ghcr.io", "https://ghcr.io/v2"),
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("r.example:5000", "https://r.example:5000/v2"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("localhost", "https://localhost/v2"),
        ] {
            assert_eq!(base_without_a_file(registry), base);
        }
    }

    #[test]
    fn mirrors_are_asked_in_the_files_order_and_the_server_last() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."https://z.example"]
            capabilities = ["pull"]
            [host."https://a.example:8443/docker"]
            [host."http://plain.example/v2"]
            [host."https://odd.example/api/"]
            override_path = true
        "#;
        let found = hosts("docker.io", "docker.io", &[(FILE, text)]).expect("valid");
        let bases: Vec<_> = found.iter().map(|host| host.base.as_str()).collect();
        assert_eq!(
            bases,
            [
                "https://z.example/v2",
                "https://a.example:8443/docker/v2",
                "http://plain.example/v2",
                "https://odd.example/api",
                "https://registry-1.docker.io/v2",
            ]
        );
        assert_eq!((found[0].resolve, found[0].pull), (false, true));
        assert_eq!((found[1].resolve, found[1].pull), (true, true));
        assert_eq!(found[0].namespace.as_deref(), Some("docker.io"));
        assert_eq!(found[4].namespace, None);
    }

    #[test]
    fn a_folder_is_found_by_each_of_its_names() {
        let text = "[host.\"https://m.example\"]\n";
        for folder in ["r.example_5000_", "r.example:5000", "_default"] {
            assert_eq!(
                bases("r.example:5000", folder, text),
                ["https://m.example/v2", "https://r.example:5000/v2"]
            );
        }
        assert_eq!(
            bases("r.example:5000", "other", text),
            ["https://r.example:5000/v2"]
        );
        let only = "server = \"https://m.example\"";
        assert_eq!(
            bases("r.example", "_default", only),
            ["https://m.example/v2"]
        );
        assert_eq!(
            bases("docker.io", "docker.io", ""),
            ["https://registry-1.docker.io/v2"]
        );
    }

    #[test]
    fn certificates_headers_and_time_outs_belong_to_their_host() {
        let text = r#"
            ca = "own.crt"
            [host."https://m.example"]
            ca = ["a.crt", "b.crt"]
            client = [["c.cert", "c.key"]]
            skip_verify = true
            dial_timeout = "500ms"
            [host."https://m.example".header]
            x-one = "1"
            x-two = ["2", "3"]
        "#;
        let files = [
            (FILE, text),
            ("own.crt", "own"),
            ("a.crt", "a"),
            ("b.crt", "b"),
            ("c.cert", "cert"),
            ("c.key", "key"),
        ];
        let found = hosts("r.example", "r.example", &files).expect("valid");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(found[0].ca, [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(found[0].client.as_deref(), Some(&b"cert\nkey"[..]));
        assert!(found[0].skip_verify && !found[1].skip_verify);
        assert_eq!(found[0].dial_timeout, Duration::from_millis(500));
        assert_eq!(
            found[0].headers,
            [pair("x-one", "1"), pair("x-two", "2"), pair("x-two", "3")]
        );
        assert_eq!(found[1].ca, [b"own".to_vec()]);
        assert_eq!(
            (found[1].headers.len(), found[1].client.is_some()),
            (0, false)
        );
    }

    #[test]
    fn without_hosts_toml_the_certificates_are_those_that_docker_would_take() {
        let files = [("a.crt", "ca"), ("c.cert", "cert"), ("c.key", "key")];
        let found = hosts("r.example", "r.example", &files).expect("valid");
        assert_eq!(found[0].ca, [b"ca".to_vec()]);
        assert_eq!(found[0].client.as_deref(), Some(&b"cert\nkey"[..]));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_file() {
        for (text, word) in [
            ("server = 5", "server"),
            ("[host.\"ftp://x\"]", "ftp://x"),
            ("[host.\"https://u:p@x\"]", "auth_file"),
            ("[host.\"https://x\"]\nca = \"missing.crt\"", "missing.crt"),
            ("[host.\"https://x\"]\nclient = 5", "client"),
            ("[host.\"https://x\"]\ndial_timeout = \"soon\"", "soon"),
            ("[host", "line 1"),
        ] {
            let error = hosts("r.example", "r.example", &[(FILE, text)]).expect_err(text);
            let error = error.to_string();
            assert!(
                error.contains("r.example/") && error.contains(word),
                "{text}: {error}"
            );
        }
    }
}
