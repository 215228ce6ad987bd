//! The bodies of requests, within limits of size, time and memory: [`read`].

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::server::State;
use crate::api::ApiError;

/// The time for a body.
const BODY_TIME: Duration = Duration::from_secs(60);
/// The time for the rest of a body that is too large. A response before it would be lost with the
/// connection.
const REST_TIME: Duration = Duration::from_secs(2);
/// The bytes of a permit for memory.
const UNIT: usize = 1024;
/// The most bytes of bodies in memory at a time.
const MOST_MEMORY: usize = 256 << 20;

/// Returns the permits for the memory of all bodies, of which the largest body takes no more.
pub(super) fn permits(max_body: usize) -> usize {
    MOST_MEMORY.max(max_body).div_ceil(UNIT)
}

/// A body, which holds a place in the memory for bodies.
pub(super) struct Body<'a> {
    pub(super) bytes: Vec<u8>,
    pub(super) permit: SemaphorePermit<'a>,
}

/// Reads the body of a request.
///
/// # Errors
/// If it is too large, too slow or incomplete, or if others take the memory for bodies.
pub(super) async fn read(state: &State, request: Request) -> Result<Body<'_>, ApiError> {
    let most = state.config.max_body;
    let length = content_length(request.headers());
    let waits = request.headers().contains_key(header::EXPECT);
    let mut stream = request.into_body().into_data_stream();
    if let Some(found) = length.filter(|&length| length > most && waits) {
        return Err(too_large(most, found));
    }
    // A body in chunks may have any length, at the price of the longest.
    let units = length.unwrap_or(most).min(most).max(1).div_ceil(UNIT) as u32;
    let permit = timeout(BODY_TIME, state.body_memory.acquire_many(units)).await;
    let permit = permit.ok().and_then(Result::ok).ok_or_else(|| ApiError {
        retry_seconds: Some(1),
        ..ApiError::new(
            503,
            None,
            "body: expected memory for it in time, found other bodies in it",
        )
    })?;
    let bytes = timeout(BODY_TIME, async {
        let (mut bytes, mut found) = (Vec::new(), 0);
        while let Some(part) = stream.next().await {
            let part = part.map_err(|error| ApiError::body(format!("body: {error}")))?;
            found += part.len();
            if found > most {
                return Err(too_large(most, length.unwrap_or(found)));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    });
    let bytes = match bytes.await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            let rest = async { while let Some(Ok(_)) = stream.next().await {} };
            // Either end of the wait will do.
            let _ = timeout(REST_TIME, rest).await;
            return Err(error);
        }
        Err(_) => {
            let message = format!("body: expected in {} s, found a part", BODY_TIME.as_secs());
            return Err(ApiError::new(408, None, message));
        }
    };
    Ok(Body { bytes, permit })
}

/// Returns the length that the headers announce.
fn content_length(headers: &HeaderMap) -> Option<usize> {
    let length = headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

fn too_large(most: usize, found: usize) -> ApiError {
    let message = format!("body: expected at most {most} bytes, found {found} or more");
    ApiError::new(413, None, message)
}
