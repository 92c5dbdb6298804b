//! In: events of a source; out: the bounded queue to the cache. Waits for room only while listing, never for an event.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::stats::{Counters, Dropped};
use crate::identity::pods::PodEvent;

/// Nobody reads the queue any more: the source ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

/// The sending end.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    sender: mpsc::Sender<PodEvent>,
    pub counters: Arc<Counters>,
}

impl Queue {
    pub fn new(sender: mpsc::Sender<PodEvent>, counters: Arc<Counters>) -> Self {
        Self { sender, counters }
    }

    /// Puts an event into the queue, waiting for room: for lists, which are asked for page by page and so cannot pile up.
    pub async fn put(&self, event: PodEvent) -> Result<(), Closed> {
        self.sender.send(event).await.map_err(|_| Closed)
    }

    /// Puts an event into the queue if there is room. `false`: there was none; it is dropped and counted, and whoever
    /// called must list again.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only the API has events"))]
    pub fn offer(&self, event: PodEvent) -> Result<bool, Closed> {
        match self.sender.try_send(event) {
            Ok(()) => Ok(true),
            Err(TrySendError::Full(_)) => {
                self.counters.drop_event(Dropped::QueueFull);
                Ok(false)
            }
            Err(TrySendError::Closed(_)) => Err(Closed),
        }
    }
}
