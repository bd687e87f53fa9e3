//! A whole broker in one process, over loopback TCP, with users and boards made of the protocol's own streams.
mod acme;
mod containers;
mod enrolment;
mod images;
mod restart;
mod routing;
mod web;
mod world;
