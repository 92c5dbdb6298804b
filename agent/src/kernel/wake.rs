//! In: the ring into which programs write where rows or slots become few; out: when they did. Knows neither which nor how many.

use aya::maps::{Map, MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Kernel;
use super::maps::MapAccessError;
use super::rejection::chain;

/// The ring.
const MAP: &str = "WAKE";

/// Completes when programs ask for more.
pub struct Wake(AsyncFd<RingBuf<MapData>>);

impl Kernel {
    /// Takes over what wakes the agent. To be called where the runtime can wait for descriptors.
    ///
    /// # Errors
    /// The object has no such map, it was taken already, or it cannot be mapped or waited for.
    pub fn take_wake(&mut self) -> Result<Wake, MapAccessError> {
        let refused = |reason: String| MapAccessError { map: MAP, reason };
        let map: Map = self.ebpf.take_map(MAP).ok_or_else(|| refused("no such map".into()))?;
        let ring = RingBuf::try_from(map).map_err(|error| refused(chain(&error)))?;
        // SAFETY: the ring owns its descriptor, and gives the same until it is dropped.
        let waiting = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        waiting.map(Wake).map_err(|error| refused(error.into_parts().1.to_string()))
    }
}

impl Wake {
    /// Waits until programs ask for more; takes in all that they asked until now. Cancel-safe.
    ///
    /// # Errors
    /// The ring cannot be waited for.
    pub async fn woken(&mut self) -> std::io::Result<()> {
        let mut ready = self.0.readable_mut().await?;
        while ready.get_inner_mut().next().is_some() {}
        ready.clear_ready();
        Ok(())
    }
}
