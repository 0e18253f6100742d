//! Our wire against the kernel's own vxlan: bytes, verdicts, and traffic in both directions.
//!
//! Everything happens in network namespaces that vanish with the test. Where the kernel
//! has no vxlan, or there are no rights, the tests say so and pass.

#[path = "support/inner.rs"]
mod inner;
#[path = "support/wire.rs"]
mod wire;

#[path = "kernel_wire/ecn.rs"]
mod ecn;
#[path = "kernel_wire/frames.rs"]
mod frames;
#[path = "kernel_wire/golden.rs"]
mod golden;
#[path = "kernel_wire/interop.rs"]
mod interop;
#[path = "kernel_wire/modes.rs"]
mod modes;
#[path = "kernel_wire/receiving.rs"]
mod receiving;
#[path = "kernel_wire/spoof.rs"]
mod spoof;
#[path = "kernel_wire/verdicts.rs"]
mod verdicts;
