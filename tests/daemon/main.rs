//! The daemon as a process in network namespaces: its life cycle, and all requests to it.

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
