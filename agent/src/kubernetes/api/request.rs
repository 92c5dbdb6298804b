//! In: what to ask; out: the answer's body within bounds of size and time, or why there is none. Knows no objects.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::header::RETRY_AFTER;
use kube::Client;
use kube::client::Body;
use tokio::time::timeout;

use super::object::Status;
use super::{bounded, message};
use crate::kubernetes::stats::Restart;

/// Most bytes read of the text of a refusal.
const REFUSAL_BYTES: usize = 64 << 10;

/// Why something has to be asked again.
#[derive(Debug)]
pub(super) struct Failure {
    pub reason: Restart,
    /// For people; bounded, one line.
    pub message: String,
    /// How long the server asks to be left alone.
    pub retry_after: Option<Duration>,
}

impl Failure {
    pub fn new(reason: Restart, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after: None }
    }

    /// A refusal by the server, in a body or in a watch.
    pub fn of_status(status: &Status) -> Self {
        let reason = match status.code {
            401 => Restart::Unauthorized,
            403 => Restart::Forbidden,
            410 => Restart::Gone,
            429 => Restart::Throttled,
            500.. => Restart::ServerError,
            _ => Restart::Refused,
        };
        let asked = status.details.as_ref().and_then(|details| details.retry_after_seconds);
        Self {
            reason,
            message: format!("{}: {}", status.code, bounded(&status.message)),
            retry_after: asked.map(|seconds| Duration::from_secs(seconds.into())),
        }
    }
}

/// A body that is read piece by piece.
pub(super) struct Pieces {
    body: Body,
}

impl Pieces {
    /// The next piece; `None` at the end. Waits at most `wait`.
    pub async fn next(&mut self, wait: Duration) -> Result<Option<bytes::Bytes>, Failure> {
        loop {
            let frame = timeout(wait, self.body.frame())
                .await
                .map_err(|_| Failure::new(Restart::Silent, format!("nothing was heard for {wait:?}")))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::new(Restart::Disconnected, message(&error))),
                // Trailers are no data.
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }

    /// The whole body, at most `most` bytes.
    pub async fn whole(&mut self, most: usize, wait: Duration) -> Result<Vec<u8>, Failure> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next(wait).await? {
            if whole.len() + piece.len() > most {
                return Err(Failure::new(Restart::TooLarge, format!("an answer has more than {most} bytes")));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }
}

/// Asks, and waits at most `wait` for the beginning of the answer.
pub(super) async fn ask(
    client: &Client,
    request: Result<hyper::Request<Vec<u8>>, kube::core::request::Error>,
    wait: Duration,
) -> Result<Pieces, Failure> {
    let request = request.map_err(|error| Failure::new(Restart::Refused, message(&error)))?.map(Body::from);
    let response = timeout(wait, client.send(request))
        .await
        .map_err(|_| Failure::new(Restart::Silent, format!("no answer for {wait:?}")))?
        .map_err(|error| Failure::new(Restart::Disconnected, message(&error)))?;
    let (head, body) = response.into_parts();
    let mut pieces = Pieces { body };
    if head.status == StatusCode::OK {
        return Ok(pieces);
    }
    // What a refusal says is of interest, but not worth a failure of its own.
    let text = pieces.whole(REFUSAL_BYTES, wait).await.unwrap_or_default();
    let mut status: Status = serde_json::from_slice(&text).unwrap_or_default();
    status.code = head.status.as_u16();
    let mut failure = Failure::of_status(&status);
    if let Some(seconds) = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok()) {
        failure.retry_after = Some(Duration::from_secs(seconds));
    }
    Err(failure)
}
