//! Under construction.
pub mod logs;
pub mod cgroup;
