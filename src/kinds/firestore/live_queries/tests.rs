//! Streams: the pure part by scripts and against a model, the task against a scripted server, all of it
//! against real emulators.

mod emulator;
mod keeping;
mod model;
mod real;
mod states;
