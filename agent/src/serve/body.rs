//! In: an answer's bytes; out: the same to hyper, telling the connection's progress when they are handed over. Knows no route.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::connections::Progress;

/// A whole answer. hyper drops it once its bytes are in the write buffer, or at once for HEAD.
pub(super) struct Body {
    bytes: Full<Bytes>,
    progress: Arc<Progress>,
}

impl Body {
    pub(super) fn new(bytes: Bytes, progress: Arc<Progress>) -> Self {
        Self { bytes: Full::new(bytes), progress }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.progress.response_buffered();
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.bytes).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.bytes.size_hint()
    }
}
