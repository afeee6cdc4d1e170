//! The guest image.
fn main() {}
