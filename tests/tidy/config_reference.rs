//! `docs/configuration.md` is made from the code: the doc comments, names and types of the structs that
//! files are read into, the defaults of the packaged examples (which another test holds equal to the real
//! ones) and the variables of the command line. `make docs` writes it; here it must be what that would
//! write.
//!
//! To extend it, nothing has to be done: a new key of a struct, and a struct in a struct, are found. Only
//! a type that was never met before needs its words in [`kind`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use syn::{Attribute, Expr, Fields, Item, ItemEnum, ItemStruct, Lit, Meta, Type};

use super::root;

const DOCUMENT: &str = "docs/configuration.md";
/// Set by `make docs`.
const WRITE: &str = "STOKEHOLD_WRITE_DOCS";

#[test]
fn the_configuration_reference_is_what_the_code_says() {
    let text = reference();
    let path = root().join(DOCUMENT);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, text).expect("written");
        return;
    }
    let held = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = held
        .lines()
        .zip(text.lines())
        .find(|(held, made)| held != made);
    assert!(
        held == text,
        "{DOCUMENT} is stale: run `make docs` and commit what it writes (after a merge, too). The \
         first line that differs: {differs:?}"
    );
}

const INTRODUCTION: &str = r#"# Configuration reference

Made from the code by `make docs`; do not edit it by hand. How to run Stokehold is in
[operations.md](operations.md), what to do when something does not work in
[troubleshooting.md](troubleshooting.md).

| file | read by |
| --- | --- |
| `/etc/stokehold/scheduler.toml`, `/etc/stokehold/scheduler.d/*.toml` | [stokehold-scheduler](#stokehold-scheduler) |
| `/etc/stokehold/agent.toml`, `/etc/stokehold/agent.d/*.toml` | [stokehold-agent](#stokehold-agent) |
| `/etc/stokehold/gateway.toml`, `/etc/stokehold/gateway.d/*.toml` | [stokehold-gateway](#stokehold-gateway) |
| `/usr/share/stokehold/runtimes/*.toml`, `/etc/stokehold/runtimes/*.toml` | [runtime templates](#runtime-templates), by stokehold-scheduler |
| `~/.config/stokehold/config.toml` | [contexts](#contexts), by stokehold |

All of them are TOML. Every key of a daemon has a default, so that an empty file, and none, are valid.
What is not known, or is of another type, is refused with file, line, key and what is accepted, all of it
at once; `--check-config` says so without starting anything.

**Drop-ins.** After `NAME.toml` a daemon reads the files of the folder `NAME.d` beside it (of
`--config FILE.toml`: `FILE.d`) whose names end in `.toml`, in the order of their names. A key of a later
file wins; tables are merged key by key, a list is replaced as a whole. So a site, a tool or a package says
what is its own in a file of its own, and the packaged file stays as it is:

```toml
# /etc/stokehold/scheduler.d/50-site.toml
[lifecycle]
lease_seconds = 30
```

**How values are written.** Bytes: a number, or a text with a unit (`"512MiB"`, `"1.5 GiB"`, `"10GB"`).
Seconds and milliseconds: whole numbers; the key's name ends in the unit. Addresses: `"127.0.0.1:7443"`,
`"[::1]:7443"`.
"#;

fn reference() -> String {
    let sources = Sources::read(&[
        "shared/src",
        "shared/daemon/src",
        "scheduler/src",
        "agent/src",
        "agent/gateway/src",
        "scheduler/cli/src",
    ]);
    let mut text = INTRODUCTION.to_owned();
    for (title, daemon, source) in [
        (
            "stokehold-scheduler",
            "scheduler",
            "scheduler/src/config.rs",
        ),
        ("stokehold-agent", "agent", "agent/src/config.rs"),
        (
            "stokehold-gateway",
            "gateway",
            "agent/gateway/src/config.rs",
        ),
    ] {
        let example =
            std::fs::read_to_string(root().join(format!("packaging/config/{daemon}.toml")))
                .expect("example");
        let defaults = Defaults::of_example(&example);
        write!(
            text,
            "\n## {title}\n\n`/etc/stokehold/{daemon}.toml`; an example with every key is \
             [packaging/config/{daemon}.toml](../packaging/config/{daemon}.toml).\n"
        )
        .expect("a String");
        sources.table(&mut text, source, "Config", "", &defaults);
    }
    text.push_str(
        "\n## Runtime templates\n\nOne file a runtime; one of a later folder of `runtimes_dirs` \
         replaces one of the same name. Keys without a default must be there.\n",
    );
    sources.table(
        &mut text,
        "shared/src/runtime.rs",
        "RuntimeTemplate",
        "",
        &Defaults::of_template(),
    );
    text.push_str(
        "\n## Contexts\n\nWritten by `stokehold up` and `stokehold context set`: where a cluster is, and who \
         one is there.\n",
    );
    let context = "scheduler/cli/src/context/file.rs";
    let none = Defaults::default();
    sources.table(&mut text, context, "ContextFile", "", &none);
    sources.table(&mut text, context, "Context", "contexts.NAME", &none);
    sources.variables(&mut text);
    text
}

/// Key paths (`tls.key`) to their defaults as TOML.
#[derive(Default)]
struct Defaults {
    values: BTreeMap<String, String>,
    /// Of a file in which what has no default must be there.
    is_template: bool,
}

impl Defaults {
    /// `# key = value` below `# [table]`.
    fn of_example(text: &str) -> Self {
        let mut found = Self::default();
        let mut table = String::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# ")) {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                table = format!("{name}.");
            } else if let Some((key, value)) = line.split_once(" = ")
                && key
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            {
                found
                    .values
                    .insert(format!("{table}{key}"), value.to_owned());
            }
        }
        found
    }

    /// What a template with nothing but what must be there is read as.
    fn of_template() -> Self {
        let least = "name = \"x\"\nimage = \"x\"\ncommand = []\n[health]\npath = \"/\"\n[resources]\n\
                     memory_bytes = 1\ncpu_millis = 1\n";
        let template: shared::runtime::RuntimeTemplate = toml::from_str(least).expect("a template");
        let given: toml::Table = toml::from_str(least).expect("TOML");
        let whole = toml::Table::try_from(template).expect("a table");
        let mut found = Self {
            is_template: true,
            ..Self::default()
        };
        found.note("", &whole, &given);
        found
    }

    fn note(&mut self, prefix: &str, whole: &toml::Table, given: &toml::Table) {
        let empty = toml::Table::new();
        for (key, value) in whole {
            let below = given.get(key).and_then(toml::Value::as_table);
            match value {
                toml::Value::Table(table) if !table.is_empty() => {
                    self.note(&format!("{prefix}{key}."), table, below.unwrap_or(&empty));
                }
                toml::Value::Table(_) => {
                    self.values.insert(format!("{prefix}{key}"), "{}".into());
                }
                value if !given.contains_key(key) => {
                    self.values
                        .insert(format!("{prefix}{key}"), value.to_string());
                }
                _ => {}
            }
        }
    }
}

/// All structs and enums of some folders, with the file that each stands in.
struct Sources {
    structs: Vec<(PathBuf, ItemStruct)>,
    enums: Vec<(PathBuf, ItemEnum)>,
}

impl Sources {
    fn read(folders: &[&str]) -> Self {
        let mut found = Self {
            structs: Vec::new(),
            enums: Vec::new(),
        };
        for folder in folders {
            found.read_folder(Path::new(folder));
        }
        found
    }

    fn read_folder(&mut self, folder: &Path) {
        let entries = std::fs::read_dir(root().join(folder)).expect("folder");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        names.sort();
        for name in names {
            let path = folder.join(name);
            if root().join(&path).is_dir() {
                self.read_folder(&path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(root().join(&path)).expect("source");
                let file = syn::parse_file(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
                for item in file.items {
                    match item {
                        Item::Struct(item) => self.structs.push((path.clone(), item)),
                        Item::Enum(item) => self.enums.push((path.clone(), item)),
                        _ => {}
                    }
                }
            }
        }
    }

    /// The one that a file means: its own, or else the only one of that name.
    fn find<'a, T>(
        items: &'a [(PathBuf, T)],
        file: &Path,
        is: impl Fn(&T) -> bool,
    ) -> Option<&'a T> {
        let named = || items.iter().filter(|(_, item)| is(item));
        named()
            .find(|(path, _)| path == file)
            .or_else(|| named().next())
            .map(|(_, item)| item)
    }

    fn structure(&self, file: &Path, name: &str) -> Option<&ItemStruct> {
        Self::find(&self.structs, file, |item| item.ident == name)
    }

    /// A table of a struct's keys, then those of the structs in it.
    fn table(
        &self,
        text: &mut String,
        source: &str,
        name: &str,
        prefix: &str,
        defaults: &Defaults,
    ) {
        let file = Path::new(source);
        let item = self
            .structure(file, name)
            .unwrap_or_else(|| panic!("{source} has no struct {name}"));
        if !prefix.is_empty() {
            writeln!(text, "\n### `[{prefix}]`").expect("a String");
            let said = docs(&item.attrs);
            if !said.is_empty() {
                writeln!(text, "\n{said}").expect("a String");
            }
        }
        text.push_str("\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n");
        let Fields::Named(fields) = &item.fields else {
            panic!("{name} has no named fields");
        };
        let mut below = Vec::new();
        for field in &fields.named {
            let key = field.ident.as_ref().expect("a name").to_string();
            let bare = inner(&field.ty);
            let path = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            // A struct with a text form of its own is a value, not a table.
            if let Some(item) = self.structure(file, &bare)
                && derives_fields(item)
            {
                below.push((path, bare));
                continue;
            }
            let said = docs(&field.attrs);
            let (default, meaning) = match defaults.values.get(&path) {
                Some(value) => (format!("`{value}`"), without_default(&said).0),
                None => {
                    let (rest, default) = without_default(&said);
                    let optional = name_of(&field.ty).starts_with("Option<");
                    let must = if defaults.is_template && !optional {
                        "must be given"
                    } else {
                        "none"
                    };
                    (default.unwrap_or_else(|| must.to_owned()), rest)
                }
            };
            let value = self.kind(file, &key, &field.ty);
            writeln!(
                text,
                "| `{key}` | {value} | {} | {} |",
                cell(&default),
                cell(&meaning)
            )
            .expect("a String");
        }
        for (path, name) in below {
            self.table(text, source, &name, &path, defaults);
        }
    }

    /// How a value is written.
    fn kind(&self, file: &Path, key: &str, ty: &Type) -> String {
        let named = name_of(ty);
        let name = inner(ty);
        let is_list = named.contains("Vec<");
        let one = match name.as_str() {
            "PathBuf" => "path",
            "SocketAddr" if named.contains("Option<") => "`IP:PORT`, or `\"\"` for none",
            "SocketAddr" => "`IP:PORT`",
            "Bytes" => "bytes",
            "String" | "EntityName" => "text",
            "IpAddr" => "IP address",
            "Egress" => "`\"none\"` or a list of addresses",
            "NodeName" => "node name",
            "ImageRef" => "image reference",
            "RuntimeName" => "runtime name",
            "bool" => "`true` or `false`",
            "f32" | "f64" => "number",
            "u8" | "u16" | "u32" | "u64" | "usize" | "i64" => match key {
                key if key.ends_with("_seconds") => "seconds",
                key if key.ends_with("_hours") => "hours",
                key if key.ends_with("_days") => "days",
                key if key.ends_with("_ms") => "milliseconds",
                key if key.ends_with("_bytes") => "bytes, a number",
                key if key.ends_with("_millis") => "thousandths",
                _ => "whole number",
            },
            "BTreeMap" => "table",
            other => {
                let item = Self::find(&self.enums, file, |item| item.ident == other);
                let Some(item) = item else {
                    panic!(
                        "{}: say how a `{other}` (key `{key}`) is written, in `kind` of \
                         tests/tidy/config_reference.rs",
                        file.display()
                    );
                };
                let names: Vec<String> = item
                    .variants
                    .iter()
                    .map(|variant| format!("`\"{}\"`", variant.ident.to_string().to_lowercase()))
                    .collect();
                return names.join(" or ");
            }
        };
        if is_list {
            let plural = if one.ends_with('s') { "es" } else { "s" };
            return format!("list of {one}{plural}");
        }
        one.to_owned()
    }

    /// The variables that the programs read.
    fn variables(&self, text: &mut String) {
        text.push_str(
            "\n## Environment variables\n\nA flag wins over its variable, and a variable over the context.\n\n\
             | variable | read by | meaning |\n| --- | --- | --- |\n",
        );
        let cli = "scheduler/cli/src";
        let mut rows = BTreeMap::new();
        for (path, item) in &self.structs {
            if !path.starts_with(cli) {
                continue;
            }
            for field in &item.fields {
                let name = field.attrs.iter().find_map(env_of);
                let flag = field
                    .ident
                    .as_ref()
                    .map(|i| i.to_string().replace('_', "-"));
                if let (Some(name), Some(flag)) = (name, flag) {
                    let said = format!("As `--{flag}`: {}", docs(&field.attrs));
                    rows.insert(name, ("stokehold".to_owned(), said));
                }
            }
        }
        assert!(rows.len() >= 5, "{cli} reads few variables: {rows:?}");
        for (name, by, said, source) in [
            (
                "STOKEHOLD_LOG",
                "the daemons",
                "As `level` in `[log]`, and wins over it.",
                "shared/daemon/src/telemetry.rs",
            ),
            (
                "NO_COLOR",
                "all programs",
                "Set to anything: no colours.",
                "scheduler/cli/src/output/mod.rs",
            ),
            (
                "XDG_CONFIG_HOME",
                "stokehold",
                "The folder in which `stokehold/config.toml` lies. Without it: `~/.config`.",
                "scheduler/cli/src/context/file.rs",
            ),
        ] {
            let source = std::fs::read_to_string(root().join(source)).expect("source");
            assert!(source.contains(name), "{name} is not read any more");
            rows.insert(name.to_owned(), (by.to_owned(), said.to_owned()));
        }
        for (name, (by, said)) in rows {
            writeln!(text, "| `{name}` | {by} | {} |", cell(&said)).expect("a String");
        }
    }
}

/// Whether a struct is read field by field.
fn derives_fields(item: &ItemStruct) -> bool {
    let has = |wanted: &str| {
        item.attrs
            .iter()
            .any(|a| a.path().is_ident(wanted) && tokens(a).contains("Deserialize"))
    };
    let transparent = item
        .attrs
        .iter()
        .any(|a| a.path().is_ident("serde") && tokens(a).contains("try_from"));
    matches!(item.fields, Fields::Named(_)) && has("derive") && !transparent
}

fn tokens(attribute: &Attribute) -> String {
    match &attribute.meta {
        Meta::List(list) => list.tokens.to_string(),
        _ => String::new(),
    }
}

/// `env = "NAME"` of `#[arg(...)]`.
fn env_of(attribute: &Attribute) -> Option<String> {
    if !attribute.path().is_ident("arg") {
        return None;
    }
    let text = tokens(attribute);
    let rest = text.split_once("env = \"")?.1;
    Some(rest.split_once('"')?.0.to_owned())
}

/// A doc comment as one paragraph.
fn docs(attributes: &[Attribute]) -> String {
    let lines: Vec<String> = attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("doc"))
        .filter_map(|attribute| match &attribute.meta {
            Meta::NameValue(pair) => match &pair.value {
                Expr::Lit(literal) => match &literal.lit {
                    Lit::Str(text) => Some(text.value().trim().to_owned()),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        })
        .collect();
    lines.join(" ").trim().to_owned()
}

/// A text without its `Default: ...`, and what that says.
fn without_default(text: &str) -> (String, Option<String>) {
    let Some((before, rest)) = text.split_once("Default: ") else {
        return (text.to_owned(), None);
    };
    let end = rest
        .char_indices()
        .find(|(i, c)| {
            *c == ';' || (*c == '.' && rest[i + 1..].chars().next().is_none_or(char::is_whitespace))
        })
        .map_or(rest.len(), |(i, _)| i);
    let after = rest.get(end + 1..).unwrap_or_default().trim();
    let before = before.trim();
    let mut after: String = after.to_owned();
    if before.is_empty() || before.ends_with('.') {
        // What followed a semicolon begins a sentence now.
        let first = after.chars().next().map(|c| c.to_uppercase().to_string());
        after = first.unwrap_or_default() + after.get(1..).unwrap_or_default();
    }
    let kept = format!("{before} {after}");
    (kept.trim().to_owned(), Some(rest[..end].to_owned()))
}

/// As it stands in a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
        .replace("[`", "`")
        .replace("`]", "`")
}

/// `Option<Vec<PathBuf>>` as text.
fn name_of(ty: &Type) -> String {
    let Type::Path(path) = ty else {
        return String::new();
    };
    let last = path.path.segments.last().expect("a type has a name");
    let arguments = match &last.arguments {
        syn::PathArguments::AngleBracketed(arguments) => arguments
            .args
            .iter()
            .filter_map(|argument| match argument {
                syn::GenericArgument::Type(ty) => Some(name_of(ty)),
                _ => None,
            })
            .collect::<Vec<_>>()
            .join(", "),
        _ => return last.ident.to_string(),
    };
    format!("{}<{arguments}>", last.ident)
}

/// The name of what an option or a list holds.
fn inner(ty: &Type) -> String {
    let name = name_of(ty);
    let mut name = name.as_str();
    while let Some(held) = ["Option<", "Vec<"]
        .iter()
        .find_map(|outer| name.strip_prefix(outer)?.strip_suffix('>'))
    {
        name = held;
    }
    name.split('<').next().unwrap_or_default().to_owned()
}
