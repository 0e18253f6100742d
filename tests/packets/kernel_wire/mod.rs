//! Our wire against the kernel's own vxlan: bytes, verdicts, and traffic in both directions.
//!
//! Everything happens in network namespaces that vanish with the test. Where the kernel
//! has no vxlan, or there are no rights, the tests say so and pass.

mod ecn;
mod frames;
mod golden;
mod interop;
mod modes;
mod spoof;
mod verdicts;
