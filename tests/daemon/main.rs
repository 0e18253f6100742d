//! The daemon as a process, in network namespaces: its life, and everything it can be asked.

#[path = "../support/mod.rs"]
mod support;

mod capture;
mod control;
mod demo;
mod device_gone;
mod preflight;
mod privileges;
mod process;
mod service;
