//! `beamline renderer`: executes one slice's GPU work. Started by the host; never by hand.

use crate::confine;

/// Serves the host at the other end of standard input until it goes away.
pub(crate) fn renderer(sandbox: bool) -> anyhow::Result<()> {
    if sandbox {
        confine::renderer()?;
    }
    Ok(beamline_mdev::renderer::main()?)
}
