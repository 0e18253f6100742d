//! Commands that set up a network of their own on this machine.

pub(crate) mod bench;
mod cleanup;
pub(crate) mod demo;
mod namespaces;

use crate::testbed::TestbedError;

fn io_error(what: &str) -> impl FnOnce(std::io::Error) -> TestbedError {
    move |source| TestbedError::Io {
        what: what.to_owned(),
        place: "this machine".into(),
        source,
    }
}
