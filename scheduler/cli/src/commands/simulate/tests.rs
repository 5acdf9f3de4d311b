use clap::Parser as _;

use super::*;
use crate::args::{Cli, Command};

fn args(line: &str) -> SimulateArgs {
    let words = format!("stokehold simulate {line}");
    let cli = Cli::try_parse_from(words.split_whitespace()).expect("parsed");
    match cli.command {
        Command::Simulate(args) => args,
        other => panic!("{other:?}"),
    }
}

fn refused(line: &str) -> String {
    scenario::contest(&args(line))
        .expect_err("refused")
        .to_string()
}

/// A short trace on disk.
fn trace(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    file
}

fn short() -> Contest {
    let rows: String = (0..120)
        .map(|t| format!("{t},{}\n", if t < 60 { 20 } else { 200 }))
        .collect();
    let file = trace(&format!("t_seconds,rps\n{rows}"));
    scenario::contest(&args(&format!(
        "--trace {} --startup 5s",
        file.path().display()
    )))
    .expect("a contest")
}

fn entries(contest: &Contest, names: &[Name]) -> Vec<Entry> {
    let cli = Cli::try_parse_from(["stokehold", "list", "--quiet"]).expect("parsed");
    compare(contest, names, &Output::new(&cli.shown))
}

#[test]
fn traffic_is_a_trace_or_made_here_or_the_outside_programs_and_one_of_them() {
    assert_eq!(
        refused(""),
        "whose traffic? Give --trace, --synthetic or --stdio"
    );
    for line in ["--stdio --synthetic step", "--trace a --synthetic step"] {
        let words = format!("stokehold simulate {line}");
        assert!(
            Cli::try_parse_from(words.split_whitespace()).is_err(),
            "{line}"
        );
    }
    let unknown = Cli::try_parse_from(["stokehold", "simulate", "--stdio", "--policy", "apa,kpb"]);
    let text = unknown.expect_err("refused").to_string();
    assert!(
        text.contains("expected apa, kpa, kpa-tuned, kpa-best, hpa or ray"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_simulated_is_refused_with_what_is_wrong() {
    assert_eq!(
        refused("--synthetic step --lead-in 2h"),
        "--lead-in: 2h leaves nothing to measure of a trace of 2400 s"
    );
    assert_eq!(
        refused("--synthetic step --min-replicas 9 --max-replicas 3"),
        "--min-replicas: more than --max-replicas"
    );
    let missing = refused("--synthetic step --plant no-such-plant");
    assert_eq!(
        missing,
        "read no-such-plant, which is not one of the plants cpu, gpu and io"
    );
    let bad = trace("t_seconds,rps\n0,1\n1,-3\n");
    let problem = refused(&format!("--trace {}", bad.path().display()));
    assert!(problem.contains(":3: "), "{problem}");
    let plot = picture::Kind::of(std::path::Path::new("a.png")).expect_err("refused");
    assert_eq!(
        plot.to_string(),
        "--plot: expected a file that ends with .svg or .html"
    );
}

#[test]
fn a_plant_is_fitted_to_what_was_recorded_and_told_where_it_cannot_be() {
    let seconds: String = (0..2400)
        .map(|t| {
            // 6 at once take 50 ms each; beyond, they share.
            let active = f64::from(t / 60 % 20 + 1) * 0.7;
            let ended = active / (0.05 * (active / 6.0).max(1.0));
            let group = serde_json::json!({"class": "cpu", "exploring": false, "replicas": 1,
                "active": active, "completions": ended, "resources": {}});
            let second = serde_json::json!({"t": t, "active": active, "queued": 0.0,
                "arrivals": ended, "completions": ended, "rejected": 0.0, "replicas_ready": 1,
                "replicas_starting": 0, "groups": [group]});
            format!("{second}\n")
        })
        .collect();
    let recording = trace(&seconds);
    let fit = scenario::fitted(recording.path()).expect("fitted");
    let knee = fit.plant.best_point();
    // A knee that is fitted a hair below 6 is a knee of 5 whole requests.
    assert!((5.0..=6.0).contains(&knee), "{}", shown::fitted(&fit));
    let little = trace(seconds.lines().next().expect("a line"));
    let error = scenario::fitted(little.path()).expect_err("refused");
    assert!(
        format!("{error:#}").contains("record for longer"),
        "{error:#}"
    );
}

#[test]
fn policies_come_in_the_order_asked_for_and_each_once() {
    let asked = [
        Name::Kpa,
        Name::Apa,
        Name::KpaBest,
        Name::Kpa,
        Name::Hpa,
        Name::Ray,
    ];
    let entries = entries(&short(), &names(&asked));
    let order: Vec<&str> = entries
        .iter()
        .map(|it| it.outcome.measures.policy.as_str())
        .collect();
    assert_eq!(order, ["kpa", "apa", "kpa-best", "hpa", "ray"]);
}

#[test]
fn for_programs_a_policy_has_the_documented_fields() {
    let entries = entries(&short(), &[Name::Kpa]);
    let value = serde_json::to_value(&entries[0].outcome.measures).expect("JSON");
    let mut fields: Vec<&str> = value
        .as_object()
        .expect("an object")
        .keys()
        .map(|it| &**it)
        .collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "changes",
            "decisions_per_s",
            "excess_share",
            "final_target_concurrency",
            "max_replicas",
            "mean_replicas",
            "policy",
            "rejected",
            "replica_seconds",
            "wait_p50_s",
            "wait_p99_s",
        ]
    );
}

#[test]
fn the_best_setting_has_no_more_excess_than_apa_or_says_so() {
    let entries = entries(&short(), &[Name::Apa, Name::KpaBest]);
    let [apa, best] = &entries[..] else {
        panic!("two")
    };
    let winner = best.best.expect("a winner");
    let allowed = apa.outcome.measures.excess_share + sim::compare::EQUAL_EXCESS;
    assert_eq!(
        winner.reaches,
        best.outcome.measures.excess_share <= allowed
    );
    assert!(shown::won(&winner).starts_with("kpa-best is Knative aiming at "));
}

#[test]
fn a_picture_has_five_panels_and_a_legend_and_a_page_has_the_figures_too() {
    let mut contest = short();
    contest.scenario.options.series_points = 60;
    let entries = entries(&contest, &[Name::Kpa, Name::Ray]);
    let svg = picture::text(picture::Kind::Svg, &contest.scenario, &entries);
    for text in [
        "demand, requests",
        "capacity of",
        "replicas that",
        "target_conc",
        "longest wait",
    ] {
        assert!(svg.contains(text), "{text}");
    }
    assert!(svg.contains(">kpa</text>") && svg.contains(">ray</text>"));
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
    let page = picture::text(picture::Kind::Html, &contest.scenario, &entries);
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains(&svg));
    assert_eq!(page.matches("<tr>").count(), 3);
    assert!(
        !page.contains("http://") || page.matches("http").count() == 1,
        "no outside resource"
    );
}
