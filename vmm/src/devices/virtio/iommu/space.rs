//! Endpoints, domains and mappings (virtio 1.3, section 5.13.6): what a request changes, and what each
//! function's view becomes by that.
//!
//! ```text
//!              attach                          attach to another
//!  Unattached ───────► Attached(domain) ──────────────────────────► Attached(other)
//!      ▲                      │
//!      └── detach, reset ─────┘
//! ```
//!
//! An endpoint that is not attached sees all RAM or nothing, as `bypass` says. A domain exists while an
//! endpoint is attached to it, so that there are never more of them than endpoints; with it go its mappings.

use super::registers::Status;
use super::{Mapping, View, ViewError, Views};
use std::collections::BTreeMap;

/// Most mappings of all domains together.
pub(super) const MAX_MAPPINGS: usize = 32_768;

struct Endpoint {
    view: Box<dyn View>,
    domain: Option<u32>,
    /// All RAM is shown already.
    all: bool,
}

#[derive(Default)]
struct Domain {
    /// It translates nothing.
    bypass: bool,
    /// By first address; none overlaps another.
    mappings: BTreeMap<u64, Mapping>,
}

/// See the module.
pub(super) struct Space {
    bypass: bool,
    endpoints: BTreeMap<u32, Endpoint>,
    domains: BTreeMap<u32, Domain>,
    mappings: usize,
}

impl Endpoint {
    /// Shows all RAM, or nothing.
    fn show(&mut self, all: bool) -> Result<(), Status> {
        match (all, self.all) {
            (true, true) => Ok(()),
            (true, false) => {
                self.hide()?;
                self.view.show_all().map_err(status)?;
                self.all = true;
                Ok(())
            }
            (false, _) => self.hide(),
        }
    }

    fn hide(&mut self) -> Result<(), Status> {
        self.view.hide_all().map_err(status)?;
        self.all = false;
        Ok(())
    }

    /// Shows what a domain has.
    fn enter(&mut self, domain: &Domain) -> Result<(), Status> {
        self.show(domain.bypass)?;
        domain.mappings.values().try_for_each(|m| self.view.show(m)).map_err(status)
    }
}

fn status(error: ViewError) -> Status {
    match error {
        ViewError::Full => Status::Full,
        ViewError::Stuck => Status::Device,
    }
}

impl Space {
    /// Endpoints by number. All of them see all RAM now.
    pub(super) fn new(views: Views) -> Self {
        let endpoint = |view| Endpoint { view, domain: None, all: true };
        Self {
            bypass: true,
            endpoints: views.into_iter().map(|(id, view)| (id, endpoint(view))).collect(),
            domains: BTreeMap::new(),
            mappings: 0,
        }
    }

    /// A request begins, with new patience for every endpoint's server.
    fn begin(&mut self) {
        self.endpoints.values_mut().for_each(|endpoint| endpoint.view.begin());
    }

    pub(super) fn bypass(&self) -> bool {
        self.bypass
    }

    pub(super) fn has(&self, endpoint: u32) -> bool {
        self.endpoints.contains_key(&endpoint)
    }

    /// Whether endpoints that are not attached see all RAM from now on.
    pub(super) fn set_bypass(&mut self, bypass: bool) {
        self.begin();
        self.bypass = bypass;
        for (id, endpoint) in self.endpoints.iter_mut().filter(|(_, e)| e.domain.is_none()) {
            release(*id, endpoint, bypass);
        }
    }

    /// Back to the state before the driver; `bypass` stays (section 5.13.5).
    pub(super) fn reset(&mut self) {
        self.begin();
        for (id, endpoint) in self.endpoints.iter_mut().filter(|(_, e)| e.domain.is_some()) {
            endpoint.domain = None;
            release(*id, endpoint, self.bypass);
        }
        self.domains.clear();
        self.mappings = 0;
    }

    pub(super) fn attach(&mut self, id: u32, to: u32, bypass: bool) -> Result<(), Status> {
        self.begin();
        let endpoint = self.endpoints.get_mut(&id).ok_or(Status::Missing)?;
        let new = Domain { bypass, ..Domain::default() };
        let domain = self.domains.get(&to).unwrap_or(&new);
        if domain.bypass != bypass {
            return Err(Status::Invalid);
        }
        let from = endpoint.domain;
        if from == Some(to) {
            return Ok(());
        }
        if let Err(why) = endpoint.enter(domain) {
            if why == Status::Device {
                // It has not let go of what it was attached to.
                return Err(why);
            }
            endpoint.domain = None;
            release(id, endpoint, self.bypass);
            self.leave(from);
            return Err(why);
        }
        endpoint.domain = Some(to);
        self.domains.entry(to).or_insert(new);
        self.leave(from);
        Ok(())
    }

    pub(super) fn detach(&mut self, id: u32, from: u32) -> Result<(), Status> {
        self.begin();
        let endpoint = self.endpoints.get_mut(&id).ok_or(Status::Missing)?;
        if endpoint.domain != Some(from) {
            return Err(Status::Invalid);
        }
        endpoint.show(self.bypass)?;
        endpoint.domain = None;
        self.leave(Some(from));
        Ok(())
    }

    /// Ends a domain that no endpoint is attached to.
    fn leave(&mut self, domain: Option<u32>) {
        let Some(domain) = domain else { return };
        if self.endpoints.values().all(|e| e.domain != Some(domain)) {
            let gone = self.domains.remove(&domain);
            self.mappings -= gone.map_or(0, |d| d.mappings.len());
        }
    }

    pub(super) fn map(&mut self, id: u32, mapping: Mapping) -> Result<(), Status> {
        self.begin();
        let domain = self.domains.get_mut(&id).ok_or(Status::Missing)?;
        // They do not overlap each other, so the last that starts before the end reaches furthest.
        let before = domain.mappings.range(..=mapping.last).next_back();
        if domain.bypass || before.is_some_and(|(_, m)| m.last >= mapping.at) {
            return Err(Status::Invalid);
        }
        if self.mappings >= MAX_MAPPINGS {
            return Err(Status::Full);
        }
        let mut shown = Vec::new();
        for endpoint in self.endpoints.values_mut().filter(|e| e.domain == Some(id)) {
            match endpoint.view.show(&mapping) {
                Ok(()) => shown.push(endpoint),
                Err(why) => {
                    for endpoint in shown {
                        // One that keeps it sees pages that its guest wanted it to see.
                        let _ = endpoint.view.hide(&mapping);
                    }
                    return Err(status(why));
                }
            }
        }
        domain.mappings.insert(mapping.at, mapping);
        self.mappings += 1;
        Ok(())
    }

    /// Removes the mappings within `first..=last`; none where one of them is cut.
    pub(super) fn unmap(&mut self, id: u32, first: u64, last: u64) -> Result<(), Status> {
        self.begin();
        let domain = self.domains.get_mut(&id).ok_or(Status::Missing)?;
        if domain.bypass {
            return Err(Status::Invalid);
        }
        let before = domain.mappings.range(..first).next_back();
        let behind = domain.mappings.range(first..=last).next_back();
        if before.is_some_and(|(_, m)| m.last >= first)
            || behind.is_some_and(|(_, m)| m.last > last)
        {
            return Err(Status::Range);
        }
        while let Some((at, mapping)) = domain.mappings.range(first..=last).next() {
            for endpoint in self.endpoints.values_mut().filter(|e| e.domain == Some(id)) {
                endpoint.view.hide(mapping).map_err(status)?;
            }
            let at = *at;
            domain.mappings.remove(&at);
            self.mappings -= 1;
        }
        Ok(())
    }
}

/// Gives an endpoint the view of one that is not attached.
fn release(id: u32, endpoint: &mut Endpoint, bypass: bool) {
    if endpoint.show(bypass).is_err() {
        tracing::warn!("iommu: the server of endpoint {id:#x} does not change what it sees");
    }
}

#[cfg(test)]
impl Space {
    /// The domain that an endpoint is attached to, whether it translates nothing, and its mappings.
    pub(super) fn domain(&self, endpoint: u32) -> Option<(u32, bool, BTreeMap<u64, Mapping>)> {
        let id = self.endpoints.get(&endpoint)?.domain?;
        let domain = &self.domains[&id];
        Some((id, domain.bypass, domain.mappings.clone()))
    }
}
