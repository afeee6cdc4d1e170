//! How a guest starts.

pub mod pvh;
