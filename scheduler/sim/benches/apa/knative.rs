//! Our autoscaler against Knative's: its best setting in hindsight, its defaults with the true knee,
//! and untuned.

use serde::Serialize;
use sim::compare::{EQUAL_EXCESS, Name};
use sim::engine;

use crate::combos::Combo;
use crate::table::Target;

const SYNTHETIC_MEAN: f64 = 0.70;
const REAL_MEAN: f64 = 0.88;
const WORST: f64 = 1.05;
/// Excess against Knative untuned, and against the floor.
const OF_UNTUNED: f64 = 0.1;
const OF_FLOOR: f64 = 1.1;

/// One combination's figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    trace: String,
    plant: String,
    startup_s: u64,
    synthetic: bool,
    floor: f64,
    apa: Figures,
    kpa_best: Figures,
    kpa_best_setting: String,
    /// `false`: no setting of Knative has as little excess.
    kpa_best_reaches: bool,
    kpa: Figures,
    kpa_tuned: Figures,
    /// Replica-seconds of apa over those of kpa-best.
    ratio: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Figures {
    replica_seconds: f64,
    excess_share: f64,
    wait_p99_s: f64,
    changes: u32,
    final_target_concurrency: Option<u32>,
}

impl From<&engine::Outcome> for Figures {
    fn from(outcome: &engine::Outcome) -> Self {
        let it = &outcome.measures;
        Self {
            replica_seconds: it.replica_seconds,
            excess_share: it.excess_share,
            wait_p99_s: it.wait_p99_s,
            changes: it.changes,
            final_target_concurrency: it.final_target_concurrency,
        }
    }
}

impl Row {
    fn label(&self) -> String {
        format!("{}/{}/{}s", self.trace, self.plant, self.startup_s)
    }

    /// Both dearer and with more excess than Knative with the true knee.
    fn worse_than_tuned(&self) -> bool {
        self.apa.replica_seconds > self.kpa_tuned.replica_seconds
            && self.apa.excess_share > self.kpa_tuned.excess_share + EQUAL_EXCESS
    }

    fn enough_less_excess_than_untuned(&self) -> bool {
        let allowed = (OF_UNTUNED * self.kpa.excess_share).max(OF_FLOOR * self.floor);
        self.apa.excess_share <= allowed + EQUAL_EXCESS
    }
}

pub(crate) fn row(combo: &Combo) -> Row {
    let contest = &combo.contest;
    let apa = Figures::from(&contest.apa());
    let best = contest.kpa_best(apa.excess_share, false, &|| {});
    let kpa_best = Figures::from(&best.outcome);
    let plain = |name| Figures::from(&contest.run(name).expect("no search"));
    Row {
        trace: combo.trace.clone(),
        plant: combo.plant.clone(),
        startup_s: combo.startup_s,
        synthetic: combo.synthetic,
        floor: engine::floor(&contest.scenario),
        ratio: apa.replica_seconds / kpa_best.replica_seconds,
        apa,
        kpa_best,
        kpa_best_setting: format!(
            "{:.0} %, {} s",
            best.settings.utilization * 100.0,
            best.settings.scale_down_delay.as_secs()
        ),
        kpa_best_reaches: best.reaches,
        kpa: plain(Name::Kpa),
        kpa_tuned: plain(Name::KpaTuned),
    }
}

pub(crate) fn head() -> String {
    format!(
        "{:<30} {:>10} {:>10} {:>6}  {:>8} {:>8} {:>8}  {:>6} {:>6} {:>4}  kpa-best",
        "trace/plant/start-up",
        "apa r-s",
        "best r-s",
        "ratio",
        "apa ex",
        "best ex",
        "floor",
        "p99 s",
        "chg",
        "tgt",
    )
}

pub(crate) fn line(row: &Row) -> String {
    let mut remarks = String::new();
    if !row.kpa_best_reaches {
        remarks += "; none reaches";
    }
    if row.worse_than_tuned() {
        remarks += "; worse than kpa-tuned in both";
    }
    if !row.enough_less_excess_than_untuned() {
        remarks += "; too much excess beside kpa";
    }
    format!(
        "{:<30} {:>10.0} {:>10.0} {:>6.3}  {:>8.4} {:>8.4} {:>8.4}  {:>6.2} {:>6} {:>4}  {}{remarks}",
        row.label(),
        row.apa.replica_seconds,
        row.kpa_best.replica_seconds,
        row.ratio,
        row.apa.excess_share,
        row.kpa_best.excess_share,
        row.floor,
        row.apa.wait_p99_s,
        row.apa.changes,
        row.apa.final_target_concurrency.unwrap_or(0),
        row.kpa_best_setting,
    )
}

/// Geometric mean of the ratios, and the worst one's row.
fn mean<'a>(rows: &[&'a Row]) -> Option<(f64, &'a Row)> {
    let worst = rows
        .iter()
        .copied()
        .max_by(|a, b| a.ratio.total_cmp(&b.ratio))?;
    let logs: f64 = rows.iter().map(|row| row.ratio.ln()).sum();
    Some(((logs / rows.len() as f64).exp(), worst))
}

pub(crate) fn means(rows: &[Row]) -> String {
    let mut out = String::new();
    let mut tell = |what: &str, chosen: &dyn Fn(&Row) -> bool| {
        let chosen: Vec<&Row> = rows.iter().filter(|row| chosen(row)).collect();
        if let Some((mean, worst)) = mean(&chosen) {
            out += &format!(
                "{what:<30} geometric mean {mean:.3}, worst {:.3} ({})\n",
                worst.ratio,
                worst.label()
            );
        }
    };
    let mut names: Vec<&str> = rows.iter().map(|row| row.trace.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        tell(name, &|row| row.trace == name);
    }
    for startup_s in crate::combos::STARTUPS_S {
        tell(&format!("start-up {startup_s} s"), &|row| {
            row.startup_s == startup_s
        });
    }
    out
}

pub(crate) fn targets(rows: &[Row]) -> Vec<Target> {
    let mut targets = Vec::new();
    for (synthetic, what, bound) in [
        (true, "traces made here", SYNTHETIC_MEAN),
        (false, "traces of files", REAL_MEAN),
    ] {
        let rows: Vec<&Row> = rows
            .iter()
            .filter(|row| row.synthetic == synthetic)
            .collect();
        let Some((mean, worst)) = mean(&rows) else {
            continue;
        };
        targets.push(Target::new(
            format!("{what}: replica-seconds of kpa-best's, geometric mean"),
            format!("{mean:.3}"),
            format!("at most {bound:.2}"),
            mean <= bound,
        ));
        targets.push(Target::new(
            format!("{what}: the worst"),
            format!("{:.3} ({})", worst.ratio, worst.label()),
            format!("at most {WORST:.2}"),
            worst.ratio <= WORST,
        ));
    }
    if rows.is_empty() {
        return targets;
    }
    let count = |good: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| good(row)).count();
    let worse = count(&Row::worse_than_tuned);
    targets.push(Target::new(
        "dearer and more excess than Knative's default with the true knee",
        format!("{worse} of {}", rows.len()),
        "0",
        worse == 0,
    ));
    let enough = count(&Row::enough_less_excess_than_untuned);
    targets.push(Target::new(
        "excess beside Knative untuned: a tenth, or 1.1 of the floor",
        format!("{enough} of {}", rows.len()),
        "all",
        enough == rows.len(),
    ));
    targets
}
