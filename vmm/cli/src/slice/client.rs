//! One request to a host's control socket. The same HTTP library as the host's; what comes back is bounded.

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
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// How long an answer may take: longer than a host gives itself.
const PATIENCE: Duration = Duration::from_secs(40);
/// Longest answer: the largest picture, hardly compressed.
const MAX_ANSWER: usize = 96 << 20;

/// Asks one host.
pub(super) struct Client {
    socket: PathBuf,
    /// A refusal goes to stdout as JSON too.
    json: bool,
}

impl Client {
    /// A client of the host whose sockets are in `run_dir`.
    pub(super) fn new(run_dir: &Path, json: bool) -> Self {
        Self { socket: run_dir.join("control.sock"), json }
    }

    /// The body of the answer, where it is what was asked for.
    pub(super) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Vec<u8>> {
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
            return Ok(answer);
        }
        let Ok(said) = serde_json::from_slice::<ErrorJson>(&answer) else {
            anyhow::bail!("{}: HTTP status {status}", self.socket.display());
        };
        if self.json {
            output::json(&said)?;
        }
        let text = format!("{}: {}; {}", said.place, said.error, said.mend);
        // The host's own failures are no fault of what was asked for.
        Err(if status < 500 { refused(text) } else { anyhow::anyhow!(text) })
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Vec<u8>)> {
        let at = || self.socket.display().to_string();
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            refused(format!(
                "{}: {error}; start `beamline host`, or name its run_dir with --host",
                self.socket.display()
            ))
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
pub(super) fn read<T: DeserializeOwned>(answer: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(answer).context("the host's answer makes no sense to this version")
}
