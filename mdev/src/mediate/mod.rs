//! Mediation: what a guest submits is copied once, validated, scheduled, run, and answered.
//!
//! | file | thread | stage |
//! |---|---|---|
//! | [`worker`] | one per slice | 2, 3: takes chains from both queues, decodes, validates |
//! | [`display`] | – | 2D resources, scanout, cursor and EDID, worked on by the worker |
//! | [`job`], [`resources`], [`limit`] | – | what a checked submission is; how many may come |
//! | [`dispatcher`], [`frames`] | one per GPU | 4 to 7: owns the scheduler, the backend and the vblanks |
//! | [`fence`] | – | 6: how unfinished work is answered |
//! | [`beat`] | the dispatcher's | 7, 8: writes the timing page and signals vblanks |
//! | [`hold`] | – | 8: answers that wait for a vblank, and those behind them |
//! | [`poster`] | one per slice | 8: writes used rings, signals all other interrupts, takes markers |
//! | [`message`], [`joint`] | – | what they hand to each other; how they are joined |

pub mod beat;
pub mod dispatcher;
pub mod display;
pub mod fence;
pub mod frames;
pub mod hold;
pub mod job;
pub mod joint;
pub mod limit;
pub mod message;
pub mod poster;
pub mod resources;
pub mod worker;

#[cfg(test)]
mod tests;
