//! TCP header: view.
