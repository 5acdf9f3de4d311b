//! What is told of nodes: who reaches the scheduler, and what is fetched.

use std::collections::{BTreeMap, BTreeSet};

use shared::api::events::EventKind;
use shared::ids::{EndpointName, ImageRef, NodeName, Role};
use shared::manifest::ManifestId;
use shared::report::{AgentReport, HoldState};

use super::Draft;
use crate::core::Core;
use crate::replica::Replica;

/// What an agent said of what it is to hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holds {
    images: BTreeMap<ImageRef, Held>,
    models: BTreeMap<ManifestId, Held>,
    /// What the node has had before: a plan that names it again fetches nothing.
    had: Had,
}

#[derive(Clone, Debug, Default)]
struct Had {
    images: BTreeSet<ImageRef>,
    models: BTreeSet<ManifestId>,
}

/// Beyond so many a node's caches have long thrown the first ones out.
const MAX_HAD: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    Fetching,
    Ready,
    Failed(String),
}

/// A change that is told.
enum News {
    Fetched,
    Failed(String),
}

impl Holds {
    /// `before`: of the report before in this session.
    fn of(report: &AgentReport, before: Option<&mut Self>) -> Self {
        let images = report.images.iter();
        let models = report.models.iter();
        let mut had = Had::default();
        if let Some(before) = before {
            had = std::mem::take(&mut before.had);
            had.add(before);
        }
        Self {
            had,
            images: images
                .map(|image| (image.reference.clone(), Held::of(&image.state)))
                .collect(),
            models: models
                .map(|model| (model.manifest, Held::of(&model.state)))
                .collect(),
        }
    }
}

impl Had {
    fn add(&mut self, before: &Holds) {
        if self.images.len() > MAX_HAD || self.models.len() > MAX_HAD {
            *self = Self::default();
        }
        let images = before.images.iter();
        let ready = images.filter(|(_, held)| **held == Held::Ready);
        self.images.extend(ready.map(|(image, _)| image.clone()));
        let models = before.models.iter();
        let ready = models.filter(|(_, held)| **held == Held::Ready);
        self.models.extend(ready.map(|(model, _)| *model));
    }
}

impl Held {
    fn of(state: &HoldState) -> Self {
        match state {
            HoldState::Fetching { .. } => Held::Fetching,
            HoldState::Ready => Held::Ready,
            HoldState::Failed { reason } => Held::Failed(reason.clone()),
        }
    }

    /// `before`: of the report before, where there was one; `had`: it has been on the node.
    fn news(&self, before: Option<Option<&Held>>, had: bool) -> Option<News> {
        match (self, before) {
            (Held::Ready, Some(None)) if had => None,
            // Already there when the agent came.
            (Held::Fetching | Held::Ready, None) | (Held::Fetching, _) => None,
            (Held::Ready, Some(Some(Held::Ready))) => None,
            (Held::Ready, Some(_)) => Some(News::Fetched),
            (now, Some(Some(before))) if now == before => None,
            (Held::Failed(reason), _) => Some(News::Failed(reason.clone())),
        }
    }
}

impl Core {
    /// What a report tells of images and models, against the one before of the same session.
    pub(crate) fn fetches(&mut self, name: &NodeName, report: &AgentReport) -> Vec<Draft> {
        let Some(node) = self.nodes.get_mut(name) else {
            return Vec::new();
        };
        let mut before = node.holds.take();
        let holds = Holds::of(report, before.as_mut());
        let here: Vec<&Replica> = (node.replicas.iter())
            .filter_map(|id| self.replicas.get(id))
            .collect();
        let mut drafts = Vec::new();
        for (image, held) in &holds.images {
            let before = before.as_ref().map(|holds| holds.images.get(image));
            let Some(news) = held.news(before, holds.had.images.contains(image)) else {
                continue;
            };
            let draft = match news {
                News::Fetched => Draft::normal(
                    EventKind::ImagePulled,
                    format!("image {image} is on {name}"),
                ),
                News::Failed(reason) => Draft::warning(
                    EventKind::ImagePullFailed,
                    format!("{name} could not get image {image}; it tries again"),
                )
                .because(reason),
            };
            let users = here.iter().filter(|it| it.template.image == *image);
            let users = users.map(|it| &it.endpoint).collect();
            drafts.extend(for_each_user(draft.image(image).node(name), users));
        }
        for (manifest, held) in &holds.models {
            let before = before.as_ref().map(|holds| holds.models.get(manifest));
            let Some(news) = held.news(before, holds.had.models.contains(manifest)) else {
                continue;
            };
            // Without a replica nobody waits for it any more.
            let using = || here.iter().filter(|it| it.entity.manifest == *manifest);
            let Some(user) = using().next() else {
                continue;
            };
            let (model, version) = (&user.entity.model, user.entity.model_version);
            let draft = match news {
                News::Fetched => Draft::normal(
                    EventKind::ModelFetched,
                    format!("model {model}/{version} is on {name}"),
                ),
                News::Failed(reason) => Draft::warning(
                    EventKind::ModelFetchFailed,
                    format!("{name} could not get model {model}/{version}; it tries again"),
                )
                .because(reason),
            };
            let users = using().map(|it| &it.endpoint).collect();
            drafts.extend(for_each_user(draft.model(model, version).node(name), users));
        }
        if let Some(node) = self.nodes.get_mut(name) {
            node.holds = Some(holds);
        }
        drafts
    }

    /// A session has begun. Told of a node's first, and of one that follows a break that was told.
    pub(crate) fn connected(&mut self, name: &NodeName, role: Role) -> Option<Draft> {
        let node = self.nodes.get_mut(name)?;
        if role == Role::Agent {
            node.holds = None;
        }
        node.broken.remove(&role).then(|| {
            let message = format!("the {role} of node {name} is connected again");
            Draft::normal(EventKind::NodeConnected, message)
                .node(name)
                .counting(true)
        })
    }

    pub(crate) fn disconnected(&mut self, name: &NodeName, role: Role) -> Option<Draft> {
        let node = self.nodes.get_mut(name)?;
        node.broken.insert(role);
        let lease = self.settings.lease.as_secs();
        let message = format!("the {role} of node {name} is not connected any more");
        let follows = match role {
            Role::Agent => format!("; its replicas are replaced after {lease} s"),
            Role::Gateway | Role::Scheduler => String::new(),
        };
        (!node.revoked).then(|| {
            Draft::normal(EventKind::NodeDisconnected, message)
                .because(format!("its session ended{follows}"))
                .node(name)
                .counting(true)
        })
    }
}

/// Each endpoint that waits for it is told; the node alone where none does.
fn for_each_user(draft: Draft, users: BTreeSet<&EndpointName>) -> Vec<Draft> {
    if users.is_empty() {
        return vec![draft];
    }
    let told = users.into_iter();
    told.map(|endpoint| draft.clone().endpoint(endpoint))
        .collect()
}
