//! What each request asks for: from a path, a method and a body to an answer.

use super::input;
use super::json::{
    API_VERSION, ActivityJson, BalloonJson, DisplayJson, GuestJson, InputJson, SerialJson,
    StateJson, StatsJson, TakenJson, TargetJson, UnplugJson, VcpuJson,
};
use crate::connector::Connector;
use crate::device;
use crate::events::{Events, GuestEvent};
use beamline_mdev::host::api::answers::{Refused, not_allowed, parse, read, refuse, say};
use beamline_mdev::host::api::json::ErrorJson;
use beamline_mdev::host::api::server::{Answer, Busy};
use beamline_vmm::config::{Boot, Device, InputDevice, OnReset};
use beamline_vmm::devices::virtio::Control;
use beamline_vmm::devices::virtio::balloon::Target;
use beamline_vmm::{Config, GuestControl, GuestState, PauseError};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long vCPUs may take to come out of the guest.
const PAUSE: Duration = Duration::from_secs(5);
/// When to ask again after the guest was too far behind.
const AGAIN_MS: u64 = 100;
/// Bytes of a page of the balloon.
const PAGE: u64 = 4096;
const DOCS: &str = "docs/guest.md";

/// The guest that is asked.
pub(super) struct Guest {
    pub(super) config: Config,
    pub(super) control: GuestControl,
    pub(super) connector: Option<Connector>,
    pub(super) events: Events,
    display: Option<DisplayJson>,
    /// Pauses and resumes are one after the other, and so are their events.
    turn: Mutex<()>,
}

impl Guest {
    pub(super) fn new(
        config: &Config,
        control: GuestControl,
        connector: Option<Connector>,
        events: Events,
    ) -> Self {
        let display = device::display(config.functions());
        Self { config: config.clone(), control, connector, events, display, turn: Mutex::new(()) }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        // There is nothing in it that a panic could leave unsound.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> StateJson {
        StateJson { state: self.state_name().into() }
    }

    fn state_name(&self) -> &'static str {
        match self.control.state() {
            GuestState::Running => "running",
            GuestState::Paused => "paused",
            GuestState::Ended => "ended",
        }
    }

    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.control.uptime().as_millis()).unwrap_or(u64::MAX)
    }

    fn about(&self) -> GuestJson {
        let Config { guest, memory, vcpus, .. } = &self.config;
        let (image, firmware) = match &guest.boot {
            Boot::Image(image) => (Some(image.path.clone()), None),
            Boot::Firmware(firmware) => (None, Some(firmware.code.clone())),
        };
        GuestJson {
            name: guest.name.clone(),
            state: self.state_name().into(),
            pid: std::process::id(),
            beamline: env!("CARGO_PKG_VERSION").into(),
            api: API_VERSION,
            uptime_ms: self.uptime_ms(),
            vcpus: vcpus.count,
            memory_bytes: memory.size,
            image,
            firmware,
            devices: device::list(&self.config, |port| Some(self.control.port(port)?.state())),
            display: self.display.clone(),
        }
    }

    fn stats(&self) -> StatsJson {
        let devices = self.config.functions().enumerate().filter_map(|(index, device)| {
            let activity = self.control.activity(index)?;
            Some(ActivityJson {
                pci: device::pci(&self.config, index),
                kind: device::kind(device).into(),
                interrupts: activity.interrupts,
                broken: activity.broken,
            })
        });
        let exits = self.control.exits_of_each();
        let vcpu = |e: beamline_vmm::Exits| VcpuJson { io: e.io, mmio: e.mmio, other: e.other };
        StatsJson {
            state: self.state_name().into(),
            uptime_ms: self.uptime_ms(),
            vcpus: exits.into_iter().map(vcpu).collect(),
            devices: devices.collect(),
            balloon: self.balloon().ok().map(inflated),
        }
    }

    fn pause(&self) -> Result<StateJson, Refused> {
        let _turn = self.turn();
        let was = self.control.state();
        self.control.pause(PAUSE).map_err(|e| match e {
            PauseError::Ended => ended(),
            PauseError::Slow | PauseError::Resumed => refuse(
                StatusCode::CONFLICT,
                &ErrorJson::new(e.to_string(), "guest", "look at the host, and try again"),
            ),
        })?;
        if was == GuestState::Running {
            self.events.say(&GuestEvent::Paused);
        }
        Ok(self.state())
    }

    fn resume(&self) -> Result<StateJson, Refused> {
        let _turn = self.turn();
        let was = self.control.state();
        if !self.control.resume() {
            return Err(ended());
        }
        if was == GuestState::Paused {
            self.events.say(&GuestEvent::Resumed);
        }
        Ok(self.state())
    }

    fn power_button(&self) -> Result<StateJson, Refused> {
        self.alive()?;
        self.control.press_power_button();
        self.events.say(&GuestEvent::PowerButton);
        Ok(self.state())
    }

    fn reset(&self) -> Result<StateJson, Refused> {
        if self.config.guest.on_reset != OnReset::Reboot {
            return Err(refuse(
                StatusCode::CONFLICT,
                &ErrorJson::new(
                    "a reset would end this guest, since its guest.on_reset is \"end\"",
                    "guest.on_reset",
                    "start it with \"reboot\" there, or use stop",
                ),
            ));
        }
        self.alive()?;
        self.control.reset();
        Ok(self.state())
    }

    fn stop(&self) -> StateJson {
        self.control.stop();
        self.state()
    }

    pub(super) fn alive(&self) -> Result<(), Refused> {
        if self.control.state() == GuestState::Ended { Err(ended()) } else { Ok(()) }
    }

    fn balloon(&self) -> Result<&Target, Refused> {
        let mut controls = (0..self.config.devices.len()).filter_map(|i| self.control.control(i));
        controls
            .find_map(|c| if let Control::Balloon(target) = c { Some(target) } else { None })
            .ok_or_else(|| missing("balloon", "add a [[device]] of type \"virtio-balloon\""))
    }

    fn set_balloon(&self, target: TargetJson) -> Result<BalloonJson, Refused> {
        let balloon = self.balloon()?;
        let most = self.config.memory.size;
        let pages = u32::try_from(target.target_bytes / PAGE).ok();
        let Some(pages) = pages.filter(|_| target.target_bytes < most) else {
            return Err(unprocessable(
                format!("{} bytes are not less than the guest has", target.target_bytes),
                "target_bytes",
                format!("use less than {most}: what the guest is to give up"),
            ));
        };
        balloon.set(pages);
        Ok(inflated(balloon))
    }

    fn input(&self, asked: &InputJson) -> Result<StateJson, Refused> {
        let events = input::events(asked.device, &asked.acts)
            .map_err(|wrong| unprocessable(wrong.what, wrong.place, wrong.mend))?;
        self.alive()?;
        let name = asked.device.name();
        let wanted = Device::Input(InputDevice::Kind(asked.device));
        let index = self.config.devices.iter().position(|device| *device == wanted);
        let Some(Control::Input(sender)) = index.and_then(|i| self.control.control(i)) else {
            let mend = format!("add a [[device]] of type \"virtio-input\" with kind = \"{name}\"");
            return Err(missing(name, mend));
        };
        sender.send(&events).map_err(|e| {
            let mut said = ErrorJson::new(e.to_string(), "guest", "ask again in retry_after_ms");
            said.retry_after_ms = Some(AGAIN_MS);
            refuse(StatusCode::CONFLICT, &said)
        })?;
        Ok(self.state())
    }
}

fn inflated(target: &Target) -> BalloonJson {
    BalloonJson {
        target_bytes: u64::from(target.wanted()) * PAGE,
        actual_bytes: u64::from(target.actual()) * PAGE,
    }
}

/// Answers one request; `busy` is set once all of it is there.
pub(super) async fn answer(guest: Arc<Guest>, request: Request<Incoming>, busy: Busy) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let body = match read(request.into_body()).await {
        Ok(body) => body,
        Err(refused) => return *refused,
    };
    busy.store(true, Ordering::Relaxed);
    route(guest, &method, &path, body).await.unwrap_or_else(|refused| *refused)
}

/// An error is an answer too.
async fn route(
    guest: Arc<Guest>,
    method: &Method,
    path: &str,
    body: Bytes,
) -> Result<Answer, Refused> {
    let Some(rest) = path.strip_prefix("/v1/guest") else { return Err(nothing()) };
    match (method.as_str(), rest) {
        ("GET", "") => run(move || Ok(guest.about())).await,
        ("GET", "/stats") => run(move || Ok(guest.stats())).await,
        ("GET", "/balloon") => run(move || guest.balloon().map(inflated)).await,
        ("PUT", "/balloon") => {
            let target = keys(&body)?;
            run(move || guest.set_balloon(target)).await
        }
        ("POST", "/pause") => run(move || guest.pause()).await,
        ("POST", "/resume") => run(move || guest.resume()).await,
        ("POST", "/power-button") => run(move || guest.power_button()).await,
        ("POST", "/reset") => run(move || guest.reset()).await,
        ("POST", "/stop") => run(move || Ok(guest.stop())).await,
        ("POST", "/input") => {
            let asked: InputJson = keys(&body)?;
            run(move || guest.input(&asked)).await
        }
        ("POST", "/writes") => {
            let asked = keys(&body)?;
            run(move || guest.writes(asked)).await
        }
        ("POST", "/serial") => {
            let SerialJson { text } = keys(&body)?;
            run(move || {
                guest.alive()?;
                Ok(TakenJson { taken: guest.control.type_in(text.as_bytes()) })
            })
            .await
        }
        (_, rest) if let Some((name, verb)) = port(rest) => {
            let name = name.to_owned();
            match (method.as_str(), verb) {
                ("POST", Verb::Plug) => run(move || guest.plug(&name)).await,
                ("POST", Verb::Unplug) => {
                    let asked = if body.is_empty() { UnplugJson::default() } else { keys(&body)? };
                    run(move || guest.unplug(&name, asked)).await
                }
                _ => Err(not_allowed(method, "POST")),
            }
        }
        (_, "" | "/stats") => Err(not_allowed(method, "GET")),
        (_, "/balloon") => Err(not_allowed(method, "GET, PUT")),
        (
            _,
            "/pause" | "/resume" | "/power-button" | "/reset" | "/stop" | "/input" | "/serial"
            | "/writes",
        ) => Err(not_allowed(method, "POST")),
        _ => Err(nothing()),
    }
}

enum Verb {
    Plug,
    Unplug,
}

/// The name of a port, and what happens to it, in `/ports/NAME/plug`.
fn port(path: &str) -> Option<(&str, Verb)> {
    let (name, verb) = path.strip_prefix("/ports/")?.split_once('/')?;
    match verb {
        "plug" => Some((name, Verb::Plug)),
        "unplug" => Some((name, Verb::Unplug)),
        _ => None,
    }
}

fn keys<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    parse(body, DOCS)
}

/// Carries `what` out beside this thread: it may wait for a lock that a vCPU holds.
async fn run<T: serde::Serialize + Send + 'static>(
    what: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<Answer, Refused> {
    match tokio::task::spawn_blocking(what).await {
        Ok(done) => Ok(say(StatusCode::OK, &done?)),
        Err(_) => Err(refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            &ErrorJson::new("the request could not be carried out", "guest", "look at the log"),
        )),
    }
}

fn nothing() -> Refused {
    let mend = "use /v1/guest, or of it /stats, /balloon, /pause, /resume, /power-button, /reset, /stop, \
                /input, /serial, /writes, /ports/NAME/plug or /ports/NAME/unplug";
    refuse(StatusCode::NOT_FOUND, &ErrorJson::new("there is nothing here", "path", mend))
}

pub(super) fn ended() -> Refused {
    let said = ErrorJson::new("the guest has ended", "guest", "start it again");
    refuse(StatusCode::CONFLICT, &said)
}

fn missing(what: &str, mend: impl Into<String>) -> Refused {
    let said = ErrorJson::new(format!("this guest has no {what}"), "device", mend);
    refuse(StatusCode::NOT_FOUND, &said)
}

/// 409, with the error and its causes.
pub(super) fn conflict(
    error: impl std::error::Error + Send + Sync + 'static,
    place: impl Into<String>,
    mend: &str,
) -> Refused {
    let what = format!("{:#}", anyhow::Error::new(error));
    refuse(StatusCode::CONFLICT, &ErrorJson::new(what, place, mend))
}

pub(super) fn unprocessable(
    what: impl Into<String>,
    place: impl Into<String>,
    mend: impl Into<String>,
) -> Refused {
    refuse(StatusCode::UNPROCESSABLE_ENTITY, &ErrorJson::new(what, place, mend))
}
