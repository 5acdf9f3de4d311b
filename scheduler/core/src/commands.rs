//! Endpoints as people make, change and delete them. A refusal changes nothing.

use shared::api::serving::{ConfigInput, CreateEndpoint};
use shared::ids::{EndpointId, EndpointName};
use shared::spec::{Endpoint, EndpointConfig, PendingConfig, RolloutFailure};

use crate::core::{Core, Pass};
use crate::endpoint::Entry;
use crate::error::ApiError;
use crate::event::Note;
use crate::events::endpoints as told;
use crate::records::{ReplicaRecord, VERSION};
use crate::rollout::MAX_FAILURE_BYTES;
use crate::validate::{config, endpoint};

impl Core {
    pub(crate) fn insert_endpoint(
        &mut self,
        input: CreateEndpoint,
        creator: &str,
        pass: &mut Pass<'_>,
    ) -> Result<EndpointName, ApiError> {
        let fields = endpoint::checked(&input)?;
        let name = fields.name;
        if self.endpoints.contains_key(&name) {
            return Err(ApiError::exists(format!(
                "endpoint {name} exists: update its config, or delete it first"
            )));
        }
        let high = u128::from(pass.rng.next_u64());
        let record = Endpoint {
            id: EndpointId::from_bits(high << 64 | u128::from(pass.rng.next_u64())),
            name: name.clone(),
            creator: creator.to_owned(),
            created_unix_ms: pass.unix_ms,
            updated_unix_ms: pass.unix_ms,
            description: fields.description,
            tags: fields.tags,
            active: None,
            pending: None,
            last_config_version: 0,
        };
        let mut entry = Entry::new(record, pass.now);
        if let Some(input) = &input.config {
            let config = self.checked_config(&entry, input)?;
            entry.roll_out(config, pass.unix_ms, pass.now);
        }
        self.check_fits(&entry)?;
        pass.tell(told::created(&name, creator));
        let rolling = entry.rolling();
        pass.drafts
            .extend(rolling.map(|pending| told::rollout_started(&name, &pending.config)));
        self.endpoints.insert(name.clone(), entry);
        self.assign_sets(&name);
        self.unwritten.endpoints.insert(name.clone());
        let note = Note::info(format!("endpoint created by {creator}"));
        pass.effects.notes.push(note.endpoint(&name));
        Ok(name)
    }

    pub(crate) fn replace_config(
        &mut self,
        name: &EndpointName,
        input: ConfigInput,
        pass: &mut Pass<'_>,
    ) -> Result<(), ApiError> {
        let entry = self.existing(name.as_str())?;
        if entry.in_progress() && !self.stands_still(entry) {
            return Err(ApiError::conflict(format!(
                "endpoint {name} is being updated: wait until state.config_update is no longer IN_PROGRESS"
            )));
        }
        let mut updated = entry.clone();
        let config = self.checked_config(entry, &input)?;
        let version = config.version;
        let started = told::rollout_started(name, &config);
        updated.roll_out(config, pass.unix_ms, pass.now);
        self.check_fits(&updated)?;
        pass.tell(started);
        self.endpoints.insert(name.clone(), updated);
        self.assign_sets(name);
        self.unwritten.endpoints.insert(name.clone());
        let note = Note::info(format!("config version {version} is rolled out"));
        pass.effects.notes.push(note.endpoint(name));
        Ok(())
    }

    /// Routes drop the endpoint at once; its replicas drain and then stop, as nothing asks for them.
    pub(crate) fn remove_endpoint(&mut self, name: &EndpointName, pass: &mut Pass<'_>) {
        let Some(entry) = self.endpoints.remove(name) else {
            return;
        };
        for (id, set) in &mut self.sets {
            if id.endpoint == entry.record.id {
                set.active = None;
                set.pending = None;
            }
        }
        self.unwritten.endpoints.insert(name.clone());
        let replicas = self.replicas.values();
        let replicas = replicas.filter(|replica| replica.set.endpoint == entry.record.id);
        pass.tell(told::deleted(name, replicas.count()));
        let note = Note::info("endpoint deleted");
        pass.effects.notes.push(note.endpoint(name));
    }

    fn checked_config(
        &self,
        entry: &Entry,
        input: &ConfigInput,
    ) -> Result<EndpointConfig, ApiError> {
        let nodes: Vec<_> = self.nodes.values().filter(|node| !node.revoked).collect();
        let gpus = |memory_bytes: u64| {
            let there = nodes.iter().map(|node| node.gpus_of(memory_bytes));
            there.max().unwrap_or(0)
        };
        let fleet = config::Fleet {
            registry: &self.registry,
            settings: &self.settings,
            most_gpus: &gpus,
        };
        config::checked(&fleet, &entry.record, input)
    }

    /// Whether every record that this endpoint can come to need fits the store, the failure of its
    /// roll-out and its replicas' included: later there is nobody to refuse.
    fn check_fits(&self, entry: &Entry) -> Result<(), ApiError> {
        let mut worst = entry.clone();
        if let Some(PendingConfig {
            config, failure, ..
        }) = &mut worst.record.pending
        {
            let longest = config.entities.iter().max_by_key(|e| e.name.as_str().len());
            *failure = longest.map(|entity| RolloutFailure {
                entity: entity.name.clone(),
                // Characters that JSON escapes take up to six bytes each.
                message: "x".repeat(MAX_FAILURE_BYTES * 6),
            });
        }
        worst.stored().put()?;
        let pending = entry.record.pending.iter();
        for entity in pending.flat_map(|pending| &pending.config.entities) {
            let Some(template) = self.settings.templates.get(&entity.runtime) else {
                continue;
            };
            let record = ReplicaRecord {
                v: VERSION,
                endpoint: entry.record.name.clone(),
                endpoint_id: entry.record.id.clone(),
                generation: u32::MAX,
                // As long as a node's name can be.
                node: shared::ids::NodeName::parse(&"n".repeat(63))
                    .expect("63 letters are a valid node name"),
                entity: std::sync::Arc::new(entity.clone()),
                template: std::sync::Arc::new(template.clone()),
                model_size_bytes: u64::MAX,
                was_ready: false,
                draining: false,
            };
            record.put(&shared::ids::ReplicaId::from_bits(0))?;
        }
        Ok(())
    }
}
