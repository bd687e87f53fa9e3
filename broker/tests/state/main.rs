//! The broker's state without sockets, disk or clock: stories, the table of who may do what when, and random lives.
mod accounts;
mod containers;
mod images;
mod live;
mod network;
mod nodes;
mod overlay;
mod properties;
mod refusals;
mod rules;
mod stored;
mod table;
mod web;
mod world;
