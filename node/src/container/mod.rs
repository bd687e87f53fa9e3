//! Containers of one node.
//!
//! ```text
//! plan      what is asked for + what the image says → what to do, step by step      pure
//! seccomp   the list of allowed system calls, compiled once
//! user      user[:group] by the image's own files                                    pure
//! health    when it is asked how it is, and what the answers add up to                pure
//! device    devices of the board that it gets
//! gate      where its first process waits for the network, or for being woken
//! child     performs the plan between clone and the container's program
//! confined  threads that reach nothing but what they work on
//! copy      files out of and into a running container, from inside
//! exec      the same for one more process in a running container
//! report    what child and exec say back
//! rootfs    directories of a container on the data partition
//! layers    layers fetched, verified and unpacked once
//! cgroup    bounds
//! logs      the output ring
//! supervisor  the control socket to PID 1
//! instance  one life of a container, running or ended
//! execute   one more process in it, as the service sees it
//! changes   what it has changed in its files
//! user_namespace  ids of its own
//! usage     what it uses and what runs in it
//! pump      bytes between descriptors and the log
//! runtime   all of it, for the agent
//! ```
pub mod cgroup;
pub mod changes;
pub mod child;
pub(crate) mod confined;
mod copy;
mod device;
pub mod exec;
pub mod execute;
mod files;
mod gate;
pub mod health;
pub mod instance;
pub mod layers;
pub mod logs;
pub mod plan;
pub mod pump;
pub mod report;
pub mod rootfs;
pub mod runtime;
pub mod seccomp;
mod sftp;
pub mod supervisor;
pub mod usage;
pub mod user;
pub mod user_namespace;
