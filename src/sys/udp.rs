//! UDP sockets with batched system calls.
