//! `beamline renderer`: executes one slice's GPU work. Started by the host; never by hand.

/// Serves the host at the other end of standard input until it goes away.
pub(crate) fn renderer() -> anyhow::Result<()> {
    Ok(beamline_mdev::renderer::main()?)
}
