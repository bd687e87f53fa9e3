//! Under construction.
pub mod cgroup;
pub mod layers;
pub mod logs;
