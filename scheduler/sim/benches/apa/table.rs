//! The table of targets: what was measured, what was to be reached, whether it was.

use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) measured: String,
    pub(crate) target: String,
    pub(crate) met: bool,
}

impl Target {
    pub(crate) fn new(
        what: impl Into<String>,
        measured: impl Into<String>,
        target: impl Into<String>,
        met: bool,
    ) -> Self {
        Self {
            what: what.into(),
            measured: measured.into(),
            target: target.into(),
            met,
        }
    }
}

pub(crate) fn text(targets: &[Target]) -> String {
    let width = |of: fn(&Target) -> &str, head: &str| {
        let widths = targets.iter().map(|it| of(it).chars().count());
        widths.chain([head.len()]).max().unwrap_or(0)
    };
    let what = width(|it| &it.what, "what");
    let measured = width(|it| &it.measured, "measured");
    let target = width(|it| &it.target, "target");
    let mut out = format!(
        "{:<what$}  {:<measured$}  {:<target$}  met\n",
        "what", "measured", "target"
    );
    for it in targets {
        let met = if it.met { "yes" } else { "NO" };
        out += &format!(
            "{:<what$}  {:<measured$}  {:<target$}  {met}\n",
            it.what, it.measured, it.target
        );
    }
    out
}
