//! One request to a control socket, a host's or a guest's. The same HTTP library as theirs; what comes back is
//! bounded.

use crate::failure::refused;
use crate::output;
use anyhow::Context;
use beamline_mdev::host::api::json::ErrorJson;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;

/// How long an answer may take: longer than those that are asked give themselves.
const PATIENCE: Duration = Duration::from_secs(40);
/// Longest answer: the largest picture, hardly compressed.
const MAX_ANSWER: usize = 96 << 20;

/// Asks one host or guest.
pub(crate) struct Client {
    socket: PathBuf,
    /// What to do where nobody answers.
    mend: &'static str,
    /// A refusal goes to stdout as JSON too.
    json: bool,
}

/// An answer that is not what was asked for.
pub(crate) struct Refusal {
    status: u16,
    said: Option<ErrorJson>,
}

impl Refusal {
    /// How long to wait before the same is asked again, where that may help.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.said.as_ref()?.retry_after_ms.map(Duration::from_millis)
    }
}

impl Client {
    /// A client of the host whose control socket this is.
    pub(crate) fn of_host(socket: PathBuf, json: bool) -> Self {
        let mend = "start `beamline host`, or name its run_dir with --host";
        Self { socket, mend, json }
    }

    /// A client of the guest whose API's socket this is.
    pub(crate) fn of_guest(socket: PathBuf, json: bool) -> Self {
        let mend = "start the guest with `beamline run --api PATH`, or with [api] in its file, and name \
                    that socket";
        Self { socket, mend, json }
    }

    /// The body of the answer, where it is what was asked for.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Vec<u8>> {
        self.try_ask(method, path, body)?.map_err(|refusal| self.tell(refusal))
    }

    /// The body of the answer, or what was answered in its place.
    pub(crate) fn try_ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Result<Vec<u8>, Refusal>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("cannot start the client")?;
        let asked =
            async { tokio::time::timeout(PATIENCE, self.exchange(method, path, body)).await };
        let (status, answer) = runtime.block_on(asked).map_err(|_| {
            anyhow::anyhow!("{}: no answer within {PATIENCE:?}", self.socket.display())
        })??;
        if status < 400 {
            return Ok(Ok(answer));
        }
        Ok(Err(Refusal { status, said: serde_json::from_slice(&answer).ok() }))
    }

    /// A refusal as an error, and on stdout where that is asked for.
    pub(crate) fn tell(&self, refusal: Refusal) -> anyhow::Error {
        let Refusal { status, said: Some(said) } = refusal else {
            return anyhow::anyhow!("{}: HTTP status {}", self.socket.display(), refusal.status);
        };
        if self.json
            && let Err(error) = output::json(&said)
        {
            return error;
        }
        let text = format!("{}: {}; {}", said.place, said.error, said.mend);
        // The other side's own failures are no fault of what was asked for.
        if status < 500 { refused(text) } else { anyhow::anyhow!(text) }
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Vec<u8>)> {
        let at = || self.socket.display().to_string();
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            refused(format!("{}: {error}; {}", self.socket.display(), self.mend))
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.with_context(at)?;
        // It ends with the connection; what went wrong there is seen by the request as well.
        tokio::spawn(async { drop(connection.await) });
        let body = body.map_or_else(Bytes::new, |value| value.to_string().into());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "beamline")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .with_context(at)?;
        let answer = sender.send_request(request).await.with_context(at)?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{}: {error}", self.socket.display()))?;
        Ok((status, body.to_bytes().to_vec()))
    }
}

/// An answer as what it is.
pub(crate) fn read<T: DeserializeOwned>(answer: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(answer).context("the answer makes no sense to this version")
}
