//! What a served entity did lately: its seconds in three resolutions, and the decisions of its axes.
//!
//! What always holds: memory is bounded for one entity and for all of them together (see
//! [`Room`]); a stretch in which nothing was measured has no point.

use std::collections::VecDeque;
use std::mem::size_of;
use std::time::Duration;

use apa::Orders;
use apa::autoscaler::Decision;
use apa::sample::{HardwareClass, Resources, Sample};
use shared::api::autoscaler::{DecisionInput, DecisionRecord, SeriesPoint};
use shared::units::{Concurrency, MonoTime};

use crate::traffic::Quantile;

/// Seconds of a point, and how many points are kept where there is room: 10 min, 2 h, 24 h.
const RESOLUTIONS: [(u32, usize); 3] = [(1, 600), (10, 720), (60, 1440)];
/// Decisions of each axis that are kept where there is room.
const DECISIONS: usize = 200;
/// ... and where there is none.
const FEWEST_DECISIONS: usize = 5;
/// For the points of all entities together, and for their decisions. With few entities each has
/// whole series; with many, all of them are cut to the same share.
const POINTS_BYTES: usize = 256 << 20;
const DECISIONS_BYTES: usize = 128 << 20;
/// What a decision takes with its texts, about.
const DECISION_BYTES: usize = 1 << 10;

/// How much one entity may keep, by how many entities there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Room {
    /// 0 to 1.
    points: f64,
    decisions: usize,
}

impl Room {
    pub(crate) fn among(entities: usize) -> Self {
        let entities = entities.max(1);
        let whole: usize = RESOLUTIONS.iter().map(|(_, kept)| kept).sum();
        let points = POINTS_BYTES as f64 / (entities * whole * size_of::<Point>()) as f64;
        let decisions = DECISIONS_BYTES / (entities * 2 * DECISION_BYTES);
        Self {
            points: points.min(1.0),
            decisions: decisions.clamp(FEWEST_DECISIONS, DECISIONS),
        }
    }

    fn points(&self, kept: usize) -> usize {
        ((kept as f64 * self.points) as usize).max(1)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct History {
    rings: [Ring; 3],
    horizontal: Decisions,
    vertical: Decisions,
}

impl Default for History {
    fn default() -> Self {
        Self {
            rings: RESOLUTIONS.map(|(seconds, kept)| Ring::new(seconds, kept)),
            horizontal: Decisions::default(),
            vertical: Decisions::default(),
        }
    }
}

impl History {
    /// A second that was measured, and what was wanted after it.
    pub(crate) fn record(&mut self, point: Point, room: Room) {
        for ring in &mut self.rings {
            ring.record(point, room);
        }
    }

    /// The decisions of a second.
    pub(crate) fn decided(&mut self, orders: &Orders, room: Room, at: Moment) {
        if let Some(decision) = &orders.horizontal {
            self.horizontal.record(None, decision, room, at);
        }
        for (class, decision) in &orders.vertical {
            self.vertical.record(Some(class), decision, room, at);
        }
    }

    /// The mean of active plus queued requests over the last stretch; `None` where nothing was
    /// measured in it.
    pub(crate) fn demand(&self, over: Duration, now: MonoTime) -> Option<Concurrency> {
        let [seconds, ..] = &self.rings;
        let recent = seconds.points.iter().rev();
        let recent = recent.take_while(|point| now.saturating_since(point.end()) < over);
        let (sum, count) = recent.fold((0.0, 0_u32), |(sum, count), point| {
            (sum + f64::from(point.active + point.queued), count + 1)
        });
        (count > 0)
            .then(|| Concurrency::new(sum / f64::from(count)))
            .flatten()
    }

    /// The last second that was measured.
    pub(crate) fn last(&self) -> Option<&Point> {
        let [seconds, ..] = &self.rings;
        seconds.points.back()
    }

    /// The points of a resolution that end after `since`; `None` where there is no such resolution.
    pub(crate) fn points(
        &self,
        resolution_s: u32,
        since: MonoTime,
    ) -> Option<impl Iterator<Item = &Point>> {
        let ring = self
            .rings
            .iter()
            .find(|ring| ring.seconds == resolution_s)?;
        let points = ring.points.iter();
        Some(points.skip_while(move |point| point.end() <= since))
    }

    pub(crate) fn horizontal(&self) -> impl Iterator<Item = &Kept> {
        self.horizontal.kept.iter()
    }

    pub(crate) fn vertical(&self) -> impl Iterator<Item = &Kept> {
        self.vertical.kept.iter()
    }

    pub(crate) fn last_horizontal(&self) -> Option<&Kept> {
        self.horizontal.kept.back()
    }

    pub(crate) fn last_vertical(&self, class: &HardwareClass) -> Option<&Kept> {
        let mut newest = self.vertical.kept.iter().rev();
        newest.find(|kept| kept.class.as_ref() == Some(class))
    }
}

/// One stretch, small: there are thousands of them for each entity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    /// Its end, seconds of the scheduler's own time.
    at: u32,
    active: f32,
    queued: f32,
    arrivals: f32,
    completions: f32,
    rejected: f32,
    /// Not a number where nothing was measured.
    p50_ms: f32,
    p95_ms: f32,
    ready: u16,
    starting: u16,
    desired: u16,
    target: u16,
    /// CPU, SM, tensor, GPU memory bandwidth, memory, I/O wait, pressure.
    resources: [Ratio; 7],
}

/// 0 to 1 in steps of 1/250, or not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ratio(u8);

impl Ratio {
    const UNKNOWN: u8 = u8::MAX;
    const STEPS: f64 = 250.0;

    fn new(ratio: Option<f64>) -> Self {
        let known = ratio.filter(|ratio| ratio.is_finite());
        Self(known.map_or(Self::UNKNOWN, |ratio| {
            (ratio.clamp(0.0, 1.0) * Self::STEPS).round() as u8
        }))
    }

    fn get(self) -> Option<f64> {
        (self.0 != Self::UNKNOWN).then(|| f64::from(self.0) / Self::STEPS)
    }
}

impl Point {
    /// A second that was measured; what is wanted after it is still to be said.
    pub(crate) fn of(sample: &Sample, now: MonoTime) -> Self {
        let mut p50_ms = Quantile::default();
        let mut p95_ms = Quantile::default();
        for group in &sample.groups {
            p50_ms.add(group.p50_ms, group.completions);
            p95_ms.add(group.p95_ms, group.completions);
        }
        let mean = |of: fn(&Resources) -> Option<f64>| {
            let mut mean = Quantile::default();
            for group in &sample.groups {
                mean.add(of(&group.resources), f64::from(group.replicas));
            }
            Ratio::new(mean.get())
        };
        Self {
            at: u32::try_from(now.since_origin().as_secs()).unwrap_or(u32::MAX),
            active: sample.active as f32,
            queued: sample.queued as f32,
            arrivals: sample.arrivals as f32,
            completions: sample.completions as f32,
            rejected: sample.rejected as f32,
            p50_ms: quantile(p50_ms.get()),
            p95_ms: quantile(p95_ms.get()),
            ready: narrow(sample.replicas_ready),
            starting: narrow(sample.replicas_starting),
            desired: 0,
            target: 0,
            resources: [
                mean(|it| it.cpu),
                mean(|it| it.gpu_sm),
                mean(|it| it.gpu_tensor),
                mean(|it| it.gpu_membw),
                mean(|it| it.memory),
                mean(|it| it.io_wait),
                mean(|it| it.pressure),
            ],
        }
    }

    pub(crate) fn wanting(self, orders: &Orders) -> Self {
        Self {
            desired: narrow(orders.desired_replicas),
            target: narrow(orders.target_concurrency()),
            ..self
        }
    }

    pub(crate) fn end(&self) -> MonoTime {
        MonoTime::from_secs(u64::from(self.at))
    }

    pub(crate) fn demand(&self) -> f64 {
        f64::from(self.active + self.queued)
    }

    /// Whether a request ended in it.
    pub(crate) fn busy(&self) -> bool {
        self.completions > 0.0
    }

    /// As the API shows it; `unix_ms` is the time of day now.
    pub(crate) fn shown(&self, now: MonoTime, unix_ms: u64) -> SeriesPoint {
        let age = now.saturating_since(self.end()).as_millis();
        let age = u64::try_from(age).unwrap_or(u64::MAX);
        let [
            cpu,
            gpu_sm,
            gpu_tensor,
            gpu_membw,
            memory,
            io_wait,
            pressure,
        ] = self.resources.map(Ratio::get);
        let known = |value: f32| (!value.is_nan()).then(|| rounded(value));
        SeriesPoint {
            unix_ms: unix_ms.saturating_sub(age),
            active: rounded(self.active),
            queued: rounded(self.queued),
            arrivals: rounded(self.arrivals),
            completions: rounded(self.completions),
            rejected: rounded(self.rejected),
            p50_ms: known(self.p50_ms),
            p95_ms: known(self.p95_ms),
            replicas_ready: self.ready.into(),
            replicas_starting: self.starting.into(),
            desired_replicas: self.desired.into(),
            target_concurrency: self.target.into(),
            cpu,
            gpu_sm,
            gpu_tensor,
            gpu_membw,
            memory,
            io_wait,
            pressure,
        }
    }
}

fn quantile(value: Option<f64>) -> f32 {
    value.map_or(f32::NAN, |value| value as f32)
}

fn narrow(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// Without the digits that a small float's way into a large one adds.
fn rounded(value: f32) -> f64 {
    (f64::from(value) * 1000.0).round() / 1000.0
}

/// Points of one resolution, oldest first.
#[derive(Clone, Debug)]
struct Ring {
    seconds: u32,
    kept: usize,
    points: VecDeque<Point>,
    /// The stretch that goes on.
    open: Option<Open>,
}

impl Ring {
    fn new(seconds: u32, kept: usize) -> Self {
        Self {
            seconds,
            kept,
            points: VecDeque::new(),
            open: None,
        }
    }

    fn record(&mut self, point: Point, room: Room) {
        if self.seconds == 1 {
            self.push(point, room);
            return;
        }
        let stretch = point.at / self.seconds;
        if let Some(open) = self.open.take_if(|open| open.stretch != stretch) {
            self.push(open.mean(), room);
        }
        self.open
            .get_or_insert_with(|| Open::new(stretch))
            .add(&point);
    }

    fn push(&mut self, point: Point, room: Room) {
        // The clock of decisions never goes back; a second that came twice is the later one.
        if self.points.back().is_some_and(|last| last.at == point.at) {
            self.points.pop_back();
        }
        while self.points.len() >= room.points(self.kept) {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }
}

/// The sum of the seconds of a stretch.
#[derive(Clone, Debug)]
struct Open {
    stretch: u32,
    seconds: u32,
    last: Option<Point>,
    gauges: [f64; 5],
    p50_ms: Quantile,
    p95_ms: Quantile,
    resources: [Quantile; 7],
}

impl Open {
    fn new(stretch: u32) -> Self {
        Self {
            stretch,
            seconds: 0,
            last: None,
            gauges: [0.0; 5],
            p50_ms: Quantile::default(),
            p95_ms: Quantile::default(),
            resources: [Quantile::default(); 7],
        }
    }

    fn add(&mut self, point: &Point) {
        self.seconds += 1;
        let gauges = [
            point.active,
            point.queued,
            point.arrivals,
            point.completions,
            point.rejected,
        ];
        for (sum, value) in self.gauges.iter_mut().zip(gauges) {
            *sum += f64::from(value);
        }
        let weight = f64::from(point.completions);
        let known = |value: f32| (!value.is_nan()).then(|| f64::from(value));
        self.p50_ms.add(known(point.p50_ms), weight);
        self.p95_ms.add(known(point.p95_ms), weight);
        for (mean, ratio) in self.resources.iter_mut().zip(point.resources) {
            mean.add(ratio.get(), 1.0);
        }
        self.last = Some(*point);
    }

    fn mean(self) -> Point {
        let last = self.last.expect("a stretch is opened by its first second");
        let seconds = f64::from(self.seconds.max(1));
        let [active, queued, arrivals, completions, rejected] =
            self.gauges.map(|sum| (sum / seconds) as f32);
        Point {
            active,
            queued,
            arrivals,
            completions,
            rejected,
            p50_ms: quantile(self.p50_ms.get()),
            p95_ms: quantile(self.p95_ms.get()),
            resources: self.resources.map(|mean| Ratio::new(mean.get())),
            ..last
        }
    }
}

/// The last decisions of an axis, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decisions {
    kept: VecDeque<Kept>,
}

/// A decision, and how often it was made in a row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kept {
    at: MonoTime,
    unix_ms: u64,
    first_unix_ms: u64,
    count: u32,
    class: Option<HardwareClass>,
    decision: Decision,
}

/// When a decision was made, by the scheduler's own time and by the time of day.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub now: MonoTime,
    pub unix_ms: u64,
}

/// Classes whose decisions may stand between two of one class; nobody has more kinds of hardware.
const CLASSES: usize = 8;

impl Decisions {
    pub(crate) fn record(
        &mut self,
        class: Option<&HardwareClass>,
        decision: &Decision,
        room: Room,
        at: Moment,
    ) {
        let Moment { now, unix_ms } = at;
        let mut newest = self.kept.iter_mut().rev().take(CLASSES);
        if let Some(last) = newest.find(|kept| kept.class.as_ref() == class)
            && last.repeated_by(decision)
        {
            last.at = now;
            last.unix_ms = unix_ms;
            last.count = last.count.saturating_add(1);
            last.decision.clone_from(decision);
            return;
        }
        while self.kept.len() >= room.decisions {
            self.kept.pop_front();
        }
        self.kept.push_back(Kept {
            at: now,
            unix_ms,
            first_unix_ms: unix_ms,
            count: 1,
            class: class.cloned(),
            decision: decision.clone(),
        });
    }

    /// Oldest first.
    pub(crate) fn shown(&self) -> Vec<DecisionRecord> {
        self.kept.iter().map(Kept::shown).collect()
    }
}

impl Kept {
    /// The same rule again, with nothing changed by it.
    fn repeated_by(&self, decision: &Decision) -> bool {
        let last = &self.decision;
        last.explanation.rule == decision.explanation.rule
            && last.after == decision.after
            && decision.before == decision.after
            && last.before == last.after
    }

    pub(crate) fn rule(&self) -> &str {
        &self.decision.explanation.rule
    }

    pub(crate) fn at(&self) -> MonoTime {
        self.at
    }

    pub(crate) fn shown(&self) -> DecisionRecord {
        let explanation = &self.decision.explanation;
        let inputs = explanation.inputs.iter().map(|input| DecisionInput {
            name: input.name.to_string(),
            value: input.value,
            unit: input.unit.to_string(),
        });
        DecisionRecord {
            unix_ms: self.unix_ms,
            first_unix_ms: self.first_unix_ms,
            count: self.count,
            class: self.class.as_ref().map(|class| class.0.clone()),
            before: self.decision.before,
            after: self.decision.after,
            rule: explanation.rule.to_string(),
            because: explanation.because.clone(),
            inputs: inputs.collect(),
            would_change: explanation.would_change.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apa::sample::Group;
    use apa::{ClassTarget, Explanation};

    fn sample(active: f64) -> Sample {
        Sample {
            active,
            arrivals: 10.0 * active,
            completions: 10.0 * active,
            replicas_ready: 2,
            groups: vec![Group {
                replicas: 2,
                active,
                completions: 10.0 * active,
                p95_ms: Some(80.0),
                resources: Resources {
                    cpu: Some(0.5),
                    ..Resources::default()
                },
                ..Group::default()
            }],
            ..Sample::default()
        }
    }

    fn run(history: &mut History, seconds: std::ops::Range<u64>, active: f64, room: Room) {
        for second in seconds {
            let point = Point::of(&sample(active), MonoTime::from_secs(second));
            history.record(point.wanting(&orders(None, Vec::new())), room);
        }
    }

    fn points(history: &History, resolution: u32) -> Vec<SeriesPoint> {
        let points = history.points(resolution, MonoTime::ZERO).expect("known");
        let now = MonoTime::from_secs(100_000);
        points.map(|it| it.shown(now, 100_000_000)).collect()
    }

    #[test]
    fn a_coarse_point_is_the_mean_of_its_seconds_and_a_gap_has_none() {
        let mut history = History::default();
        let room = Room::among(1);
        run(&mut history, 100..110, 1.0, room);
        run(&mut history, 130..135, 2.0, room);
        run(&mut history, 135..140, 4.0, room);
        run(&mut history, 140..141, 0.0, room);
        let coarse = points(&history, 10);
        assert_eq!(coarse.len(), 2, "of 100 and of 130 on: {coarse:?}");
        assert_eq!(coarse[0].active, 1.0);
        assert_eq!(coarse[1].active, 3.0);
        assert_eq!((coarse[1].p95_ms, coarse[1].cpu), (Some(80.0), Some(0.5)));
        assert_eq!(coarse[1].gpu_sm, None, "never zero");
        assert_eq!(
            (coarse[1].desired_replicas, coarse[1].target_concurrency),
            (3, 7)
        );
        assert_eq!(coarse[1].unix_ms, 139_000);
        assert_eq!(points(&history, 1).len(), 21);
        assert_eq!(points(&history, 60).len(), 1);
        assert!(history.points(5, MonoTime::ZERO).is_none());
    }

    #[test]
    fn demand_is_of_its_stretch_only_and_nothing_measured_is_no_demand() {
        let mut history = History::default();
        let now = MonoTime::from_secs(130);
        assert_eq!(history.demand(Duration::from_secs(20), now), None);
        run(&mut history, 100..128, 1.0, Room::among(1));
        run(&mut history, 128..131, 21.0, Room::among(1));
        let demand = |seconds, now| {
            let demand = history.demand(Duration::from_secs(seconds), MonoTime::from_secs(now));
            demand.map(Concurrency::get)
        };
        assert_eq!(demand(3, 130), Some(21.0));
        assert_eq!(demand(20, 130), Some(4.0));
        assert_eq!(demand(20, 200), None);
    }

    #[test]
    fn memory_is_bounded_for_one_entity_and_for_all_together() {
        let mut history = History::default();
        let alone = Room::among(1);
        run(&mut history, 0..2_000, 1.0, alone);
        assert_eq!(points(&history, 1).len(), 600);
        let crowded = Room::among(10_000);
        run(&mut history, 2_000..2_001, 1.0, crowded);
        let kept = history.rings[0].points.len();
        assert!((60..300).contains(&kept), "{kept}");
        let whole: usize = RESOLUTIONS.iter().map(|(_, kept)| kept).sum();
        for entities in [1, 100, 1_000, 10_000, 100_000] {
            let room = Room::among(entities);
            let each: usize = RESOLUTIONS.iter().map(|(_, kept)| room.points(*kept)).sum();
            assert!(each <= whole && each * entities * size_of::<Point>() <= POINTS_BYTES);
        }
    }

    #[test]
    fn a_point_stays_small() {
        assert_eq!(size_of::<Point>(), 48);
    }

    fn decision(rule: &str, before: u32, after: u32) -> Decision {
        Decision {
            before,
            after,
            explanation: Explanation {
                rule: rule.to_owned().into(),
                because: format!("{before} to {after}"),
                inputs: Vec::new(),
                would_change: "more demand".into(),
            },
        }
    }

    fn orders(horizontal: Option<Decision>, vertical: Vec<(HardwareClass, Decision)>) -> Orders {
        Orders {
            desired_replicas: 3,
            targets: vec![ClassTarget {
                class: HardwareClass::default(),
                target_concurrency: 7,
                explore: None,
                guess: false,
            }],
            horizontal,
            vertical,
        }
    }

    fn moment(seconds: u64) -> Moment {
        Moment {
            now: MonoTime::from_secs(seconds),
            unix_ms: seconds * 1000,
        }
    }

    #[test]
    fn a_decision_that_changes_nothing_is_counted_and_one_that_does_is_kept() {
        let mut history = History::default();
        let made = [
            ("demand", 1, 2),
            ("hold", 2, 2),
            ("hold", 2, 2),
            ("hold", 2, 2),
            ("demand", 2, 3),
            ("demand", 3, 4),
        ];
        for (second, (rule, before, after)) in made.into_iter().enumerate() {
            let at = moment(second as u64);
            let orders = orders(Some(decision(rule, before, after)), Vec::new());
            history.decided(&orders, Room::among(1), at);
        }
        let kept: Vec<_> = history.horizontal().map(Kept::shown).collect();
        let counts: Vec<_> = kept.iter().map(|it| (it.after, it.count)).collect();
        assert_eq!(counts, [(2, 1), (2, 3), (3, 1), (4, 1)]);
        assert_eq!((kept[1].first_unix_ms, kept[1].unix_ms), (1000, 3000));
    }

    #[test]
    fn classes_count_their_decisions_apart() {
        let mut history = History::default();
        let class = |name: &str| HardwareClass(name.into());
        for _ in 0..300 {
            let vertical = vec![
                (class("a"), decision("hold", 4, 4)),
                (class("b"), decision("hold", 9, 9)),
            ];
            history.decided(&orders(None, vertical), Room::among(1), moment(0));
        }
        let counts: Vec<_> = history
            .vertical()
            .map(|it| (it.count, it.decision.after))
            .collect();
        assert_eq!(counts, [(300, 4), (300, 9)]);
        for n in 0..1000 {
            let moved = vec![(class("a"), decision("up", n, n + 1))];
            history.decided(&orders(None, moved), Room::among(1), moment(0));
        }
        assert_eq!(history.vertical().count(), DECISIONS);
    }
}
