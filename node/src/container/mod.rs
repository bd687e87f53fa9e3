//! Under construction.
pub mod cgroup;
pub mod logs;
