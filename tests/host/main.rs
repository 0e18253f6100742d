//! Changes that the program makes to a host, and the doctor.

#[path = "../support/mod.rs"]
mod support;

mod doctor;
mod firewall;
mod kernel;
