//! The changes that the program makes to a host, and the doctor that examines one.

#[path = "../support/mod.rs"]
mod support;

mod doctor;
mod firewall;
mod kernel;
