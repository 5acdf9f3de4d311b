//! The load over time as an SVG that stands alone. Pure.
//!
//! Four panels: rates, latencies (logarithmic), demand beside capacity, replicas.

use super::report::Report;
use super::scale::Scale;
use crate::output::chart::{Line, Panel, Picture};

pub(super) fn svg(report: &Report) -> String {
    let end = report.seconds.iter().map(|second| second.at_s + 1).max();
    let picture = Picture {
        title: format!("Load on {}", report.endpoint),
        summary: summary(report),
        legend: Vec::new(),
        end_s: (end.unwrap_or(1) as f64).max(report.over_s.min(report.took_s)),
        panels: panels(report),
    };
    picture.svg()
}

fn summary(report: &Report) -> String {
    let requests = &report.requests;
    let rates = super::schedule::Rates {
        from: report.rps_from,
        to: report.rps_to,
    };
    format!(
        "{rates} over {}: {} due, {} succeeded, {} failed, {} not sent; p99 {}",
        super::live::seconds(report.over_s),
        requests.intended,
        requests.succeeded,
        requests.failed,
        requests.not_sent,
        super::live::milliseconds(report.latency.from_intended.p99_ms),
    )
}

fn panels(report: &Report) -> Vec<Panel> {
    // A second's figure stands in its middle.
    let second = |value: fn(&super::report::SecondReport) -> Option<f64>| {
        let seconds = report.seconds.iter();
        let points = seconds.map(|it| (it.at_s as f64 + 0.5, value(it)));
        points.collect::<Vec<_>>()
    };
    let look = |value: fn(&Scale) -> Option<f64>| {
        let looks = report.scale.iter().filter(|it| it.at_s >= 0.0);
        looks.map(|it| (it.at_s, value(it))).collect::<Vec<_>>()
    };
    let line = |label: &str, class: &str, points| Line {
        label: label.into(),
        class: class.into(),
        stepped: false,
        points,
    };
    let steps = |label: &str, class: &str, points| Line {
        label: label.into(),
        class: class.into(),
        stepped: true,
        points,
    };
    vec![
        Panel {
            title: "requests per second".into(),
            log: false,
            lines: vec![
                line(
                    "intended",
                    "orange dashed",
                    second(|it| Some(it.intended_rps)),
                ),
                line("answered", "blue", second(|it| Some(it.answered as f64))),
                line(
                    "failed or not sent",
                    "red dotted",
                    second(|it| Some((it.failed + it.not_sent) as f64)),
                ),
            ],
        },
        Panel {
            title: "latency from the intended send, ms".into(),
            log: true,
            lines: vec![
                line("p50", "blue", second(|it| it.p50_ms)),
                line("p99", "orange dashed", second(|it| it.p99_ms)),
            ],
        },
        Panel {
            title: "requests at once".into(),
            log: false,
            lines: vec![
                line("demand", "blue", look(|it| it.demand)),
                steps(
                    "target x ready replicas",
                    "green",
                    look(|it| Some(f64::from(it.target_concurrency? * it.ready_replicas))),
                ),
                steps(
                    "target of each",
                    "orange dotted",
                    look(|it| it.target_concurrency.map(f64::from)),
                ),
            ],
        },
        Panel {
            title: "replicas".into(),
            log: false,
            lines: vec![
                steps(
                    "ready",
                    "green",
                    look(|it| Some(f64::from(it.ready_replicas))),
                ),
                steps(
                    "wanted",
                    "orange dashed",
                    look(|it| it.desired_replicas.map(f64::from)),
                ),
            ],
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    #[test]
    fn the_picture_of_a_small_load() {
        insta::assert_snapshot!(svg(&example()));
    }

    #[test]
    fn a_load_without_any_figure_has_a_picture_too() {
        let mut report = example();
        report.seconds.clear();
        report.scale.clear();
        let picture = svg(&report);
        assert!(
            picture.ends_with("</svg>\n") && !picture.contains("NaN") && !picture.contains("inf")
        );
    }
}
