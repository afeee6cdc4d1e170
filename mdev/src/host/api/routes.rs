//! What each request asks for: from a path, a method and a body to an answer.

use super::answers::{self, Refused, not_allowed, read, refuse, respond, say};
use super::json::{
    AllStatsJson, ErrorJson, HostJson, NamedStatsJson, SliceJson, SlicesJson, StatsJson, error,
};
use super::server::{Answer, Busy};
use crate::config::slice::{SliceError, WrittenSlice, contract, written};
use crate::host::control::{ControlError, Controller, SliceView};
use crate::host::parts::encode_png;
use beamline_sched::Contract;
use beamline_sched::written::Written;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Answers one request; `busy` is set once all of it is there. It waits for a change before it for `patience`.
pub(super) async fn answer(
    controller: Arc<Controller>,
    request: Request<Incoming>,
    busy: Busy,
    patience: Duration,
) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let body = match read(request.into_body()).await {
        Ok(body) => body,
        Err(refused) => return *refused,
    };
    busy.store(true, Ordering::Relaxed);
    let asked = Asked { controller, patience };
    route(&asked, &method, &path, body).await.unwrap_or_else(|refused| *refused)
}

/// Who is asked, and how long an answer may wait for a change before it.
struct Asked {
    controller: Arc<Controller>,
    patience: Duration,
}

/// An error is an answer too.
async fn route(asked: &Asked, method: &Method, path: &str, body: Bytes) -> Result<Answer, Refused> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match (method.as_str(), parts.as_slice()) {
        ("GET", []) => {
            let about =
                |c: &Controller| Ok(HostJson::new(c.facts(), c.slices().len(), c.promise()));
            Ok(say(StatusCode::OK, &run(asked, about).await?))
        }
        ("GET", ["stats"]) => {
            Ok(say(StatusCode::OK, &run(asked, |c: &Controller| Ok(stats(c))).await?))
        }
        ("GET", ["slices"]) => {
            let all = |c: &Controller| {
                let promise = c.promise();
                let slices = c.slices().iter().map(|s| SliceJson::new(s, promise)).collect();
                Ok(SlicesJson { slices })
            };
            Ok(say(StatusCode::OK, &run(asked, all).await?))
        }
        ("POST", ["slices"]) => {
            let slice = parse::<WrittenSlice>(&body)?.read().map_err(wrong)?;
            let create = move |c: &Controller| shown(c, c.create(slice.clone()));
            Ok(say(StatusCode::CREATED, &run(asked, create).await?))
        }
        ("GET", ["slices", name]) => {
            let name = (*name).to_owned();
            let get = move |c: &Controller| shown(c, c.slice(&name));
            Ok(say(StatusCode::OK, &run(asked, get).await?))
        }
        ("PATCH", ["slices", name]) => {
            let patch = parse::<Patch>(&body)?;
            let name = (*name).to_owned();
            let change = move |c: &Controller| shown(c, c.change(&name, |old| patch.apply(old)));
            Ok(say(StatusCode::OK, &run(asked, change).await?))
        }
        ("DELETE", ["slices", name]) => {
            let name = (*name).to_owned();
            let gone = Gone { removed: name.clone() };
            run(asked, move |c: &Controller| c.remove(&name)).await?;
            Ok(say(StatusCode::OK, &gone))
        }
        ("GET", ["slices", name, "scanout.png"]) => {
            let name = (*name).to_owned();
            let png = move |c: &Controller| {
                let mut png = Vec::new();
                match encode_png(&mut png, &c.scanout(&name)?) {
                    Ok(()) => Ok(Some(png)),
                    Err(_) => Ok(None),
                }
            };
            match run(asked, png).await? {
                Some(png) => Ok(respond(StatusCode::OK, "image/png", png)),
                None => Err(unheard("the picture cannot be encoded")),
            }
        }
        ("POST", ["slices", name, verb @ ("quiesce" | "resume")]) => {
            let (name, quiesce) = ((*name).to_owned(), *verb == "quiesce");
            let ask = move |c: &Controller| shown(c, c.quiesce(&name, quiesce));
            Ok(say(StatusCode::OK, &run(asked, ask).await?))
        }
        (_, ["slices", _, "quiesce" | "resume"]) => Err(not_allowed(method, "POST")),
        (_, [] | ["stats"] | ["slices", _, "scanout.png"]) => Err(not_allowed(method, "GET")),
        (_, ["slices"]) => Err(not_allowed(method, "GET, POST")),
        (_, ["slices", _]) => Err(not_allowed(method, "GET, PATCH, DELETE")),
        _ => {
            let mend = "use /, /stats, /slices, /slices/NAME, and of a slice /scanout.png, /quiesce or /resume";
            let said = ErrorJson::new("there is nothing here", "path", mend);
            Err(refuse(StatusCode::NOT_FOUND, &said))
        }
    }
}

#[derive(Serialize)]
struct Gone {
    removed: String,
}

/// A change of a slice: the contract's keys that become others. As RFC 7396 has it, `null` takes a key away.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    contract: Map<String, Value>,
}

impl Patch {
    /// The contract that `old` becomes.
    fn apply(&self, old: &Contract) -> Result<Contract, SliceError> {
        let mut keys = written(old);
        merge(&mut keys, &self.contract);
        let read = serde_path_to_error::deserialize::<_, Written>(Value::Object(keys));
        let written = read.map_err(|e| {
            let key = match e.path().to_string().as_str() {
                "." => "contract".to_owned(),
                path => format!("contract.{path}"),
            };
            SliceError { key, problem: e.into_inner().to_string() }
        })?;
        contract(written)
    }
}

fn merge(keys: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match (keys.get_mut(key), value) {
            (_, Value::Null) => {
                keys.remove(key);
            }
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            _ => {
                keys.insert(key.clone(), value.clone());
            }
        }
    }
}

fn shown(
    controller: &Controller,
    view: Result<SliceView, ControlError>,
) -> Result<SliceJson, ControlError> {
    Ok(SliceJson::new(&view?, controller.promise()))
}

fn stats(controller: &Controller) -> AllStatsJson {
    let named = |view: SliceView| NamedStatsJson {
        stats: StatsJson::new(&view.stats),
        name: view.config.name,
    };
    AllStatsJson {
        label: controller.facts().label.to_string(),
        slices: controller.slices().into_iter().map(named).collect(),
    }
}

/// Carries `what` out beside this thread; waits for a change before it, where that ends in time.
async fn run<T: Send + 'static>(
    asked: &Asked,
    what: impl Fn(&Controller) -> Result<T, ControlError> + Clone + Send + 'static,
) -> Result<T, Refused> {
    let until = Instant::now() + asked.patience;
    loop {
        let (controller, what) = (Arc::clone(&asked.controller), what.clone());
        match tokio::task::spawn_blocking(move || what(&controller)).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(ControlError::Busy { wait })) => {
                let wait = Duration::from_nanos(wait.0);
                if Instant::now() + wait > until {
                    let wait = beamline_abi::Nanos(wait.as_nanos() as u64);
                    return Err(failed(&ControlError::Busy { wait }));
                }
                tokio::time::sleep(wait).await;
            }
            Ok(Err(error)) => return Err(failed(&error)),
            Err(_) => return Err(unheard("the host could not carry the request out")),
        }
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    answers::parse(body, "docs/control.md")
}

fn wrong(error: SliceError) -> Refused {
    failed(&ControlError::Slice(error))
}

fn failed(problem: &ControlError) -> Refused {
    let (status, said) = error(problem);
    refuse(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &said)
}

fn unheard(what: &str) -> Refused {
    let said = ErrorJson::new(what, "host", "look at the host's log");
    refuse(StatusCode::INTERNAL_SERVER_ERROR, &said)
}
