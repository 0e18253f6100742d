//! The rules on a host: as flannel's, mended, cleaned up after flannel and ourselves, whole or
//! not at all, and doing what they are for.

mod bench;
mod effects;
mod faults;
mod leftovers;
mod tools;
