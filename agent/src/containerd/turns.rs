//! One at a time for each name: images that share a layer are brought in at the same time, and would
//! otherwise unpack it into the same snapshot.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::OwnedMutexGuard;

/// Cheap to clone; clones share the turns.
#[derive(Clone, Default)]
pub(super) struct Turns {
    held: Arc<Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>>,
}

impl Turns {
    /// Waits until nobody else has the turn for this name. It ends when the guard is dropped.
    pub(super) async fn take(&self, name: &str) -> OwnedMutexGuard<()> {
        let turn = self.of(name);
        turn.lock_owned().await
    }

    fn of(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut held = self.held.lock().expect("nothing panics under it");
        held.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = held.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        held.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_has_one_turn_at_a_time_and_others_do_not_wait_for_it() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        let other = turns.take("b").await;
        let clone = turns.clone();
        let second = tokio::spawn(async move { drop(clone.take("a").await) });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop((first, other));
        second.await.expect("had its turn");
        drop(turns.take("c").await);
        assert_eq!(turns.held.lock().expect("not poisoned").len(), 1);
    }
}
