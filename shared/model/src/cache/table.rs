//! What is in the cache, and what to evict. Pure: the caller deletes files.
//!
//! Invariant: a pinned view, an object of a view that stays, and an object that somebody is filling
//! are never chosen; and if not enough can be freed, nothing is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use shared::manifest::ManifestId;

use super::disk::ObjectKey;

#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// Objects on disk, and those about to be, with their sizes.
    pub(super) objects: BTreeMap<ObjectKey, u64>,
    pub(super) views: BTreeMap<ManifestId, ViewRecord>,
    /// `None` until the caller has said what is in use: until then all is.
    pub(super) pins: Option<BTreeSet<ManifestId>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ViewRecord {
    pub(super) objects: BTreeSet<ObjectKey>,
    /// Bytes of files that share no object's inode (see `view`).
    pub(super) own_bytes: u64,
    pub(super) size_bytes: u64,
    pub(super) last_used: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eviction {
    View(ManifestId),
    Object(ObjectKey),
}

/// Not even all that may go is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) evictable_bytes: u64,
}

impl Table {
    pub(super) fn used_bytes(&self) -> u64 {
        let objects: u64 = self.objects.values().sum();
        objects + self.views.values().map(|v| v.own_bytes).sum::<u64>()
    }

    pub(super) fn is_pinned(&self, id: &ManifestId) -> bool {
        self.pins.as_ref().is_none_or(|pins| pins.contains(id))
    }

    /// What to delete, in this order, so that `need_bytes` become free: first what no view uses (the
    /// rest of downloads that nobody took up), then the views that were used longest ago.
    pub(super) fn plan_eviction(
        &self,
        need_bytes: u64,
        busy: &BTreeSet<ObjectKey>,
    ) -> Result<Vec<Eviction>, Shortage> {
        let mut evictions = Vec::new();
        let mut freed_bytes = 0;
        let mut users: BTreeMap<ObjectKey, usize> = BTreeMap::new();
        for key in self.views.values().flat_map(|view| &view.objects) {
            *users.entry(*key).or_default() += 1;
        }
        for (key, size) in &self.objects {
            if freed_bytes >= need_bytes {
                return Ok(evictions);
            }
            if !users.contains_key(key) && !busy.contains(key) {
                freed_bytes += size;
                evictions.push(Eviction::Object(*key));
            }
        }
        let mut views: Vec<(&ManifestId, &ViewRecord)> = self
            .views
            .iter()
            .filter(|(id, _)| !self.is_pinned(id))
            .collect();
        views.sort_by_key(|(id, view)| (view.last_used, **id));
        for (id, view) in views {
            if freed_bytes >= need_bytes {
                return Ok(evictions);
            }
            evictions.push(Eviction::View(*id));
            freed_bytes += view.own_bytes;
            for key in &view.objects {
                let left = users.entry(*key).or_default();
                *left -= 1;
                if *left == 0 && !busy.contains(key) {
                    freed_bytes += self.objects.get(key).copied().unwrap_or(0);
                    evictions.push(Eviction::Object(*key));
                }
            }
        }
        if freed_bytes >= need_bytes {
            Ok(evictions)
        } else {
            Err(Shortage {
                evictable_bytes: freed_bytes,
            })
        }
    }

    /// The objects that only this view uses.
    pub(super) fn only_of(&self, id: &ManifestId, busy: &BTreeSet<ObjectKey>) -> Vec<ObjectKey> {
        let Some(view) = self.views.get(id) else {
            return Vec::new();
        };
        let others = self.views.iter().filter(|(other, _)| *other != id);
        let shared: BTreeSet<&ObjectKey> = others.flat_map(|(_, view)| &view.objects).collect();
        let only = view.objects.iter();
        only.filter(|key| !shared.contains(key) && !busy.contains(*key))
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared::digest::Digest;
    use std::time::Duration;

    fn key(n: u8) -> ObjectKey {
        ObjectKey {
            root: Digest::from_bytes([n; 32]),
            executable: false,
        }
    }

    fn id(n: u8) -> ManifestId {
        ManifestId(Digest::from_bytes([n; 32]))
    }

    fn view(objects: &[u8], last_used_secs: u64) -> ViewRecord {
        ViewRecord {
            objects: objects.iter().map(|&n| key(n)).collect(),
            own_bytes: 0,
            size_bytes: 0,
            last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(last_used_secs),
        }
    }

    /// Objects 0 to 5 of 10 bytes; 0 is loose; view 1 (old) has 1 and 3, view 2 (new) has 2 and 3.
    fn table(pins: &[u8]) -> Table {
        Table {
            objects: (0..4).map(|n| (key(n), 10)).collect(),
            views: [(id(1), view(&[1, 3], 1)), (id(2), view(&[2, 3], 2))].into(),
            pins: Some(pins.iter().map(|&n| id(n)).collect()),
        }
    }

    fn plan(table: &Table, need: u64) -> Result<Vec<Eviction>, Shortage> {
        table.plan_eviction(need, &BTreeSet::new())
    }

    #[test]
    fn what_no_view_uses_goes_first_and_then_the_view_used_longest_ago() {
        let table = table(&[]);
        assert_eq!(plan(&table, 0), Ok(vec![]));
        assert_eq!(plan(&table, 10), Ok(vec![Eviction::Object(key(0))]));
        let old_view = [
            Eviction::Object(key(0)),
            Eviction::View(id(1)),
            Eviction::Object(key(1)),
        ];
        assert_eq!(plan(&table, 11), Ok(old_view.to_vec()));
    }

    #[test]
    fn a_shared_object_goes_with_its_last_view() {
        let evictions = plan(&table(&[]), 40).expect("enough");
        assert_eq!(evictions.last(), Some(&Eviction::Object(key(3))));
    }

    #[test]
    fn without_room_nothing_is_evicted() {
        assert_eq!(
            plan(&table(&[1]), 21),
            Err(Shortage {
                evictable_bytes: 20
            })
        );
    }

    #[test]
    fn until_somebody_says_what_is_in_use_all_is() {
        let table = Table {
            pins: None,
            ..table(&[])
        };
        assert_eq!(
            plan(&table, 11),
            Err(Shortage {
                evictable_bytes: 10
            })
        );
    }

    proptest! {
        #[test]
        fn nothing_in_use_is_ever_chosen_and_enough_is_freed(
            views in proptest::collection::vec((proptest::collection::btree_set(0u8..12, 0..6), 0u64..5), 0..6),
            sizes in proptest::collection::vec(0u64..100, 12),
            pins in proptest::collection::btree_set(0u8..6, 0..4),
            busy in proptest::collection::btree_set(0u8..12, 0..4),
            need in 0u64..800,
        ) {
            let table = Table {
                objects: sizes.iter().enumerate().map(|(n, &size)| (key(n as u8), size)).collect(),
                views: views.iter().enumerate().map(|(n, (objects, used))| {
                    (id(n as u8), view(&Vec::from_iter(objects.iter().copied()), *used))
                }).collect(),
                pins: Some(pins.iter().map(|&n| id(n)).collect()),
            };
            let busy: BTreeSet<ObjectKey> = busy.into_iter().map(key).collect();
            let Ok(evictions) = table.plan_eviction(need, &busy) else { return Ok(()); };
            let gone_views: BTreeSet<ManifestId> = evictions.iter().filter_map(|e| match e {
                Eviction::View(id) => Some(*id),
                Eviction::Object(_) => None,
            }).collect();
            let gone: Vec<ObjectKey> = evictions.iter().filter_map(|e| match e {
                Eviction::Object(key) => Some(*key),
                Eviction::View(_) => None,
            }).collect();
            prop_assert!(gone_views.iter().all(|id| !table.is_pinned(id)));
            for (id, view) in &table.views {
                let stays = !gone_views.contains(id);
                prop_assert!(!stays || view.objects.iter().all(|key| !gone.contains(key)));
            }
            prop_assert!(gone.iter().all(|key| !busy.contains(key)));
            prop_assert_eq!(gone.len(), gone.iter().collect::<BTreeSet<_>>().len());
            prop_assert!(gone.iter().map(|key| table.objects[key]).sum::<u64>() >= need);
        }
    }
}
