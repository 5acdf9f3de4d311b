//! How much memory bodies may hold: they are read before their requests wait, so that many clients
//! together could fill it.

use std::sync::Arc;

use http_body::SizeHint;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::payload::WHOLE_BYTES;

/// A permit's worth.
const UNIT_BYTES: usize = 1 << 10;

pub(crate) struct Memory {
    units: Arc<Semaphore>,
}

/// What a body may need while it is read.
pub(crate) struct Reserved(OwnedSemaphorePermit);

impl Memory {
    pub(crate) fn new(bytes: u64) -> Self {
        let units = usize::try_from(bytes).unwrap_or(usize::MAX) / UNIT_BYTES;
        Self {
            units: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Room for a body, by the length that its client told; `None` when there is none left.
    pub(crate) fn reserve(&self, told: &SizeHint) -> Option<Reserved> {
        let most = told
            .upper()
            .and_then(|upper| usize::try_from(upper).ok())
            .map_or(WHOLE_BYTES, |upper| upper.min(WHOLE_BYTES));
        let units = Arc::clone(&self.units).try_acquire_many_owned(units_of(most));
        units.ok().map(Reserved)
    }
}

impl Reserved {
    /// Gives back what the body did not need.
    pub(crate) fn keep(mut self, bytes: usize) -> OwnedSemaphorePermit {
        let kept = (units_of(bytes) as usize).min(self.0.num_permits());
        let surplus = self.0.num_permits() - kept;
        drop(self.0.split(surplus));
        self.0
    }
}

fn units_of(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_without_a_length_takes_the_most_until_it_is_read() {
        let memory = Memory::new(300 << 10);
        let unknown = memory.reserve(&SizeHint::new()).expect("room");
        assert!(memory.reserve(&SizeHint::new()).is_none());
        let kept = unknown.keep(10);
        assert_eq!(kept.num_permits(), 1);
        assert!(memory.reserve(&SizeHint::new()).is_some());
    }

    #[test]
    fn what_was_held_comes_back() {
        let memory = Memory::new(2 << 10);
        let held = memory.reserve(&SizeHint::with_exact(2_000)).expect("room");
        assert!(memory.reserve(&SizeHint::with_exact(1)).is_none());
        drop(held);
        assert!(memory.reserve(&SizeHint::with_exact(1)).is_some());
    }
}
