//! The result: one row a policy.

use sim::compare::{Contest, Name};
use sim::fit::Fit;
use sim::measure::Measures;

use super::{Entry, Winner};
use crate::output::Output;
use crate::output::format::UNKNOWN;
use crate::output::table::Table;

pub(super) fn show(contest: &Contest, entries: &[Entry], output: &Output) -> anyhow::Result<()> {
    let measures: Vec<&Measures> = entries
        .iter()
        .map(|entry| &entry.outcome.measures)
        .collect();
    if output.is_json() {
        return output.json(&measures);
    }
    output.table(&table(entries))?;
    if let Some(winner) = entries.iter().find_map(|entry| entry.best) {
        output.note(won(&winner));
    }
    let floor = sim::engine::floor(&contest.scenario);
    output.note(format!(
        "excess of who only reacts, and holds the most of 5 min: {}",
        share(floor)
    ));
    Ok(())
}

fn table(entries: &[Entry]) -> Table {
    let best = entries.iter().find(|entry| entry.best.is_some());
    let nothing = "no policy was asked for";
    let Some(best) = best.map(|entry| &entry.outcome.measures) else {
        let mut table = Table::new(
            [
                "POLICY",
                "REPLICA-S",
                "MEAN",
                "MAX",
                "EXCESS",
                "P50",
                "P99",
                "REJECTED",
                "CHANGES",
                "TARGET",
            ],
            nothing,
        );
        for entry in entries {
            let it = &entry.outcome.measures;
            table.row([
                it.policy.as_str().into(),
                format!("{:.0}", it.replica_seconds).into(),
                format!("{:.1}", it.mean_replicas).into(),
                it.max_replicas.into(),
                share(it.excess_share).into(),
                wait(it.wait_p50_s).into(),
                wait(it.wait_p99_s).into(),
                format!("{:.0}", it.rejected).into(),
                it.changes.into(),
                target(it).into(),
            ]);
        }
        return table;
    };
    let mut table = Table::new(
        [
            "POLICY",
            "REPLICA-S",
            "RATIO",
            "MEAN",
            "MAX",
            "EXCESS",
            "P50",
            "P99",
            "REJECTED",
            "CHANGES",
            "TARGET",
        ],
        nothing,
    );
    for entry in entries {
        let it = &entry.outcome.measures;
        table.row([
            it.policy.as_str().into(),
            format!("{:.0}", it.replica_seconds).into(),
            ratio(it, best).into(),
            format!("{:.1}", it.mean_replicas).into(),
            it.max_replicas.into(),
            share(it.excess_share).into(),
            wait(it.wait_p50_s).into(),
            wait(it.wait_p99_s).into(),
            format!("{:.0}", it.rejected).into(),
            it.changes.into(),
            target(it).into(),
        ]);
    }
    table
}

/// Replica-seconds over those of [`Name::KpaBest`].
pub(super) fn ratio(it: &Measures, best: &Measures) -> String {
    if best.replica_seconds > 0.0 {
        format!("{:.2}", it.replica_seconds / best.replica_seconds)
    } else {
        UNKNOWN.into()
    }
}

pub(super) fn won(winner: &Winner) -> String {
    let settings = &winner.settings;
    let setting = format!(
        "{} is Knative aiming at {:.0} % of {}, with a scale-down delay of {} s",
        Name::KpaBest,
        settings.utilization * 100.0,
        settings.concurrency,
        settings.scale_down_delay.as_secs(),
    );
    if winner.reaches {
        setting
    } else {
        format!("{setting}: none of its settings has as little excess as apa, this one has least")
    }
}

pub(super) fn fitted(fit: &Fit) -> String {
    format!(
        "fitted to {} loads, {:.1} % off: knee {} requests",
        fit.points.len(),
        fit.error * 100.0,
        fit.plant.best_point()
    )
}

/// A share of load, as small ones are told apart.
pub(super) fn share(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

pub(super) fn wait(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1000.0)
    } else {
        format!("{seconds:.1} s")
    }
}

pub(super) fn target(it: &Measures) -> String {
    let target = it.final_target_concurrency;
    target.map_or_else(|| UNKNOWN.into(), |target| target.to_string())
}
