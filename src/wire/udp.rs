//! UDP header: view.
