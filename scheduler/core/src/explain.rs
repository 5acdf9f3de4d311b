//! What `stokehold explain` and `stokehold replay` read of the autoscaler.

use std::time::Duration;

use shared::api::autoscaler::{Explained, ExplainedEntity, Series, TargetInfo};
use shared::ids::EntityName;
use shared::spec::ServedEntity;
use shared::units::MonoTime;

use crate::axes::Axes;
use crate::core::Core;
use crate::endpoint::Entry;
use crate::error::ApiError;
use crate::history::{History, Kept, Point};

/// Which part of an entity's series is asked for.
#[derive(Clone, Debug, Default)]
pub struct SeriesQuery {
    /// Not needed where the endpoint has one.
    pub entity: Option<String>,
    /// 1, 10 or 60.
    pub resolution_s: u32,
    /// What ended after this, Unix milliseconds.
    pub since_unix_ms: Option<u64>,
}

impl Core {
    /// How things stand with both axes of an endpoint's entities, and how they came to be so; without
    /// `entity` of all that serve. `unix_ms` is the time of day.
    pub fn explain(
        &self,
        name: &str,
        entity: Option<&str>,
        unix_ms: u64,
    ) -> Result<Explained, ApiError> {
        let entry = self.existing(name)?;
        let active = entry.record.active.iter().flat_map(|it| &it.entities);
        let asked = active.filter(|it| entity.is_none_or(|name| it.name.as_str() == name));
        let entities: Vec<ExplainedEntity> = asked
            .map(|entity| self.explained(entry, entity, unix_ms))
            .collect();
        match entity {
            Some(entity) if entities.is_empty() => Err(not_served(entry, entity)),
            Some(_) | None => Ok(Explained {
                endpoint: entry.record.name.clone(),
                entities,
            }),
        }
    }

    /// What was measured of one served entity lately.
    pub fn series(
        &self,
        name: &str,
        query: &SeriesQuery,
        unix_ms: u64,
    ) -> Result<Series, ApiError> {
        let entry = self.existing(name)?;
        let entity = served(entry, query.entity.as_deref())?;
        let since = query.since_unix_ms.map_or(MonoTime::ZERO, |since| {
            let ago = Duration::from_millis(unix_ms.saturating_sub(since));
            MonoTime::from(self.now.since_origin().saturating_sub(ago))
        });
        let unknown = || {
            ApiError::invalid(format!(
                "resolution: expected 1s, 10s or 1m, got {} s",
                query.resolution_s
            ))
        };
        let none = History::default();
        let history = entry.history.get(entity).unwrap_or(&none);
        let points = history.points(query.resolution_s, since);
        let points = points.ok_or_else(unknown)?;
        Ok(Series {
            endpoint: entry.record.name.clone(),
            entity: entity.clone(),
            resolution_s: query.resolution_s,
            points: points.map(|it| it.shown(self.now, unix_ms)).collect(),
        })
    }

    fn explained(&self, entry: &Entry, entity: &ServedEntity, unix_ms: u64) -> ExplainedEntity {
        let scaling = &entity.scaling;
        let set = entry.active_set(&entity.name);
        let set = set.and_then(|id| self.sets.get(&id));
        let history = entry.history.get(&entity.name);
        let (ready, there) = set.map_or((0, 0), |set| {
            let there = self.counted(set).count();
            (
                self.ready_members(set),
                u32::try_from(there).unwrap_or(u32::MAX),
            )
        });
        let targets = set.map_or(&[][..], |set| set.axes.targets());
        let target = |target: &apa::ClassTarget| TargetInfo {
            class: target.class.0.clone(),
            target_concurrency: target.target_concurrency,
            explore: target.explore,
            origin: Axes::origin(entity, Some(target)),
            bound_by: history
                .and_then(|history| history.last_vertical(&target.class))
                .map(|kept| kept.rule().to_owned()),
        };
        ExplainedEntity {
            entity: entity.name.clone(),
            now: history
                .and_then(History::last)
                .map(|point: &Point| point.shown(self.now, unix_ms)),
            desired_replicas: set.map_or(0, |set| set.desired()),
            ready_replicas: ready,
            starting_replicas: there.saturating_sub(ready),
            min_replicas: scaling.min_replicas,
            max_replicas: scaling.max_replicas,
            provisioned_concurrency: scaling.provisioned_concurrency,
            latency_objective_ms: scaling.latency_objective_ms,
            startup_s: set
                .and_then(|set| set.startup.get())
                .map(|startup| startup.as_secs_f64()),
            targets: targets.iter().map(target).collect(),
            horizontal: history
                .map_or_else(Vec::new, |it| it.horizontal().map(Kept::shown).collect()),
            vertical: history.map_or_else(Vec::new, |it| it.vertical().map(Kept::shown).collect()),
        }
    }
}

/// The entity that is asked for, or the only one.
fn served<'a>(entry: &'a Entry, asked: Option<&str>) -> Result<&'a EntityName, ApiError> {
    let active = entry.record.active.as_ref();
    let entities = active.map_or(&[][..], |config| &config.entities);
    match (asked, entities) {
        (Some(asked), _) => entities
            .iter()
            .map(|entity| &entity.name)
            .find(|name| name.as_str() == asked)
            .ok_or_else(|| not_served(entry, asked)),
        (None, [only]) => Ok(&only.name),
        (None, []) => Err(ApiError::not_found(format!(
            "endpoint {} does not serve yet, so nothing was measured",
            entry.record.name
        ))),
        (None, several) => {
            let names: Vec<&str> = several.iter().map(|it| it.name.as_str()).collect();
            Err(ApiError::invalid(format!(
                "entity: name one of the served entities, {}",
                names.join(", ")
            )))
        }
    }
}

fn not_served(entry: &Entry, asked: &str) -> ApiError {
    let shown: String = asked.chars().take(80).collect();
    ApiError::not_found(format!(
        "endpoint {} does not serve an entity {shown:?}",
        entry.record.name
    ))
}
