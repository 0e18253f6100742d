//! flannel_args
