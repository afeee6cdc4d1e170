//! What every API of this product reads and says: bodies that are bounded, JSON, and errors in three parts.

use super::json::ErrorJson;
use super::server::Answer;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Longest request body, bytes.
pub const MAX_BODY: usize = 64 << 10;
/// How long a peer may take to send its body.
const BODY_PATIENCE: Duration = Duration::from_secs(5);

/// An answer that is not what was asked for.
pub type Refused = Box<Answer>;

/// All of a request's body, if it is not too long and comes in time.
///
/// # Errors
/// The answer that says what is wrong with it.
pub async fn read(body: Incoming) -> Result<Bytes, Refused> {
    let too_long = || {
        let mend = format!("send at most {MAX_BODY} bytes");
        let said = ErrorJson::new("the body is too long", "body", mend);
        refuse(StatusCode::PAYLOAD_TOO_LARGE, &said)
    };
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_long());
    }
    let limited = Limited::new(body, MAX_BODY).collect();
    match tokio::time::timeout(BODY_PATIENCE, limited).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(e)) => Err(refuse(
            StatusCode::BAD_REQUEST,
            &ErrorJson::new(format!("the body breaks off: {e}"), "body", "send all of it"),
        )),
        Err(_) => Err(refuse(
            StatusCode::REQUEST_TIMEOUT,
            &ErrorJson::new("the body does not come", "body", "send it within 5 s"),
        )),
    }
}

/// A body as JSON; `keys` says where its keys are described. What is not JSON is a bad request; JSON that
/// means nothing cannot be processed.
///
/// # Errors
/// The answer that says what is wrong, and where.
pub fn parse<T: DeserializeOwned>(body: &[u8], keys: &str) -> Result<T, Refused> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        (path, e.into_inner())
    });
    let read = read.and_then(|value| json.end().map(|()| value).map_err(|e| (".".into(), e)));
    read.map_err(|(path, e)| {
        let text = e.to_string();
        if !e.is_data() {
            let place = format!("body, line {} column {}", e.line(), e.column());
            let said = ErrorJson::new(format!("this is no JSON: {text}"), place, "send JSON");
            return refuse(StatusCode::BAD_REQUEST, &said);
        }
        // The place is named by its key.
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        let (what, mend) = match text.split_once(", expected ") {
            Some((what, expected)) => (what, format!("expected {expected}")),
            None => (text, format!("see {keys} for the keys")),
        };
        // A key may be the empty string, which names no place.
        let place = if matches!(path.as_str(), "" | ".") { "body".to_owned() } else { path };
        refuse(StatusCode::UNPROCESSABLE_ENTITY, &ErrorJson::new(what, place, mend))
    })
}

/// There is something here, but not by this method.
pub fn not_allowed(method: &Method, allowed: &'static str) -> Refused {
    let said = ErrorJson::new(
        format!("{method} is not what can be done here"),
        "method",
        format!("use {allowed}"),
    );
    let mut answer = refuse(StatusCode::METHOD_NOT_ALLOWED, &said);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// An error.
pub fn refuse(status: StatusCode, said: &ErrorJson) -> Refused {
    let mut answer = say(status, said);
    if let Some(ms) = said.retry_after_ms {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
    }
    Box::new(answer)
}

/// A value as JSON.
pub fn say(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(mut json) => {
            json.push(b'\n');
            respond(status, "application/json", json)
        }
        // Strings and finite numbers can be written.
        Err(_) => respond(StatusCode::INTERNAL_SERVER_ERROR, "application/json", b"{}\n".into()),
    }
}

/// Bytes of this kind.
pub fn respond(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
