//! Beamline.
