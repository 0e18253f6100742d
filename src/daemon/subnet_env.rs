//! subnet_env
