//! Our wire format against the kernel's vxlan: bytes, accepted frames, and traffic in both
//! directions.
//!
//! Everything happens in network namespaces that end with the test. Without vxlan in the kernel,
//! or without privileges, the tests are skipped.

mod ecn;
mod frames;
mod golden;
mod interop;
mod modes;
mod spoof;
mod verdicts;
