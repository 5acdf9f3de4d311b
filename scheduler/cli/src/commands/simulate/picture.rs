//! The result over time: an SVG that stands alone, or a page with it and the figures. Pure.
//!
//! Five panels share one time axis: demand, capacity, replicas, target_concurrency, waits. A policy has
//! the same colour and pattern in all of them.

use std::fmt::Write as _;
use std::path::Path;

use sim::compare::Name;
use sim::engine::Scenario;
use sim::measure::{Measures, Point, Series};

use super::{Entry, shown, usage};
use crate::output::chart::{Line, Panel, Picture, escaped};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Svg,
    Html,
}

impl Kind {
    pub(super) fn of(path: &Path) -> anyhow::Result<Self> {
        match path.extension().and_then(|it| it.to_str()) {
            Some("svg") => Ok(Kind::Svg),
            Some("html") => Ok(Kind::Html),
            Some(_) | None => Err(usage(
                "--plot: expected a file that ends with .svg or .html",
            )),
        }
    }
}

const PAGE_STYLE: &str = "\
body{font:14px system-ui,sans-serif;margin:24px auto;max-width:1000px;padding:0 16px;\
color:#1f2328;background:#fff}svg{max-width:100%;height:auto}\
table{border-collapse:collapse;margin:16px 0}th,td{padding:4px 10px;text-align:right;\
border-bottom:1px solid #d1d9e0}th:first-child,td:first-child{text-align:left}\
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}\
th,td{border-color:#30363d}}";

pub(super) fn text(kind: Kind, scenario: &Scenario, entries: &[Entry]) -> String {
    let svg = picture(scenario, entries).svg();
    match kind {
        Kind::Svg => svg,
        Kind::Html => page(scenario, entries, &svg),
    }
}

fn title(scenario: &Scenario) -> String {
    format!(
        "{} on {}",
        scenario.trace.name.rsplit('/').next().unwrap_or_default(),
        scenario.plant.name.rsplit('/').next().unwrap_or_default(),
    )
}

fn summary(scenario: &Scenario) -> String {
    let plant = &scenario.plant;
    let mut text = format!(
        "knee {} requests, start-up {:.0} s, seed {}",
        plant.best_point(),
        plant.startup.mean_s,
        scenario.options.seed,
    );
    let lead_in_s = scenario.options.lead_in_s;
    if lead_in_s > 0 {
        let _ = write!(text, "; the first {lead_in_s} s are not measured");
    }
    text
}

fn picture(scenario: &Scenario, entries: &[Entry]) -> Picture {
    let lines = |value: fn(&Point) -> Option<f64>| -> Vec<Line> {
        let lines = entries.iter().map(|entry| Line {
            label: String::new(),
            class: class(&entry.outcome.measures.policy),
            stepped: true,
            points: points(&entry.outcome.series, value),
        });
        // The first policy lies on top of the others.
        lines.rev().collect()
    };
    let demand = |label: &str, class: &str| Line {
        label: label.into(),
        class: class.into(),
        stepped: true,
        points: entries.first().map_or_else(Vec::new, |entry| {
            points(&entry.outcome.series, |it| Some(it.demand))
        }),
    };
    let panel = |title: &str, lines| Panel {
        title: title.into(),
        log: false,
        lines,
    };
    let mut capacity = vec![demand("demand", "black faint")];
    capacity.extend(lines(|it| Some(it.capacity)));
    let legend = entries.iter().map(|entry| {
        let policy = &entry.outcome.measures.policy;
        (policy.clone(), class(policy))
    });
    Picture {
        title: title(scenario),
        summary: summary(scenario),
        legend: legend.collect(),
        end_s: f64::from(scenario.trace.length_s),
        panels: vec![
            panel("demand, requests at once", vec![demand("", "black")]),
            panel(
                "capacity of ready replicas at the knee, requests at once",
                capacity,
            ),
            panel("replicas that are paid for", lines(|it| Some(it.replicas))),
            Panel {
                title: "target_concurrency, requests a replica (logarithmic)".into(),
                log: true,
                lines: lines(|it| it.target_concurrency.map(f64::from)),
            },
            Panel {
                title: "longest wait in the queue, s (logarithmic; nothing where none waits)"
                    .into(),
                log: true,
                lines: lines(|it| (it.wait_s > 0.0).then_some(it.wait_s)),
            },
        ],
    }
}

fn points(series: &Series, value: fn(&Point) -> Option<f64>) -> Vec<(f64, Option<f64>)> {
    let points = series.points.iter();
    points.map(|it| (f64::from(it.t_s), value(it))).collect()
}

/// The same policy looks the same in every picture.
fn class(policy: &str) -> String {
    let name: Option<Name> = policy.parse().ok();
    match name {
        Some(Name::Apa) => "blue",
        Some(Name::KpaBest) => "orange",
        Some(Name::Kpa) => "yellow dashed",
        Some(Name::KpaTuned) => "green dashed",
        Some(Name::Hpa) => "purple dotted",
        Some(Name::Ray) => "sky mixed",
        None => "black",
    }
    .into()
}

fn page(scenario: &Scenario, entries: &[Entry], svg: &str) -> String {
    let title = escaped(&title(scenario));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <style>{PAGE_STYLE}</style>\n</head>\n<body>\n{svg}<table>\n<tr>"
    );
    let best = entries.iter().find(|entry| entry.best.is_some());
    let best = best.map(|entry| &entry.outcome.measures);
    for (name, _) in columns(best, None) {
        let _ = write!(out, "<th>{name}</th>");
    }
    out.push_str("</tr>\n");
    for entry in entries {
        out.push_str("<tr>");
        for (_, value) in columns(best, Some(&entry.outcome.measures)) {
            let _ = write!(out, "<td>{}</td>", escaped(&value));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
    if let Some(winner) = entries.iter().find_map(|entry| entry.best) {
        let _ = writeln!(out, "<p>{}.</p>", escaped(&shown::won(&winner)));
    }
    out.push_str("</body>\n</html>\n");
    out
}

/// A table's columns, and one policy's values in them.
fn columns(best: Option<&Measures>, of: Option<&Measures>) -> Vec<(&'static str, String)> {
    let value = |shown: &dyn Fn(&Measures) -> String| of.map(shown).unwrap_or_default();
    let mut columns = vec![
        ("policy", value(&|it| it.policy.clone())),
        (
            "replica-seconds",
            value(&|it| format!("{:.0}", it.replica_seconds)),
        ),
    ];
    if let Some(best) = best {
        columns.push(("of kpa-best", value(&|it| shown::ratio(it, best))));
    }
    columns.extend([
        (
            "mean replicas",
            value(&|it| format!("{:.1}", it.mean_replicas)),
        ),
        ("most", value(&|it| it.max_replicas.to_string())),
        ("excess", value(&|it| shown::share(it.excess_share))),
        ("wait p50", value(&|it| shown::wait(it.wait_p50_s))),
        ("wait p99", value(&|it| shown::wait(it.wait_p99_s))),
        ("rejected", value(&|it| format!("{:.0}", it.rejected))),
        ("changes", value(&|it| it.changes.to_string())),
        ("target", value(&shown::target)),
    ]);
    columns
}
