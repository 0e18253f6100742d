//! The one atomic pointer to the current snapshot.
