//! In: families, labels, values and a format; out: exposition text in the caller's buffer. Pure: no I/O, no clock, no HTTP.
//!
//! A body is [`encode_snapshot`], whatever else has families of other names, then [`finish`]. All of them are written by
//! [`text`].

mod negotiate;
pub(crate) mod text;
mod workloads;

#[cfg(test)]
mod tests;

use std::io::Write;

pub use negotiate::{Format, accepts_gzip, negotiate};
pub use text::{Metadata, MetricKind, Number, finish};
pub use workloads::{encode_snapshot, encode_tenant};

/// Compresses a body: level 1, since level 6 costs ten times the time for a tenth less bytes.
///
/// # Errors
/// Never for a `Vec`; the type is that of the encoder.
pub fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    // Label text repeats: a tenth is what real bodies come to.
    let out = Vec::with_capacity(body.len() / 8 + 64);
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(1));
    encoder.write_all(body)?;
    // Not `finish`: it takes the encoder by value, whose state zlib-rs then frees under a live reference (zlib-rs#491).
    encoder.try_finish()?;
    Ok(std::mem::take(encoder.get_mut()))
}
