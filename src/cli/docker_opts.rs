//! docker_opts
