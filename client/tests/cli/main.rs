//! The real `wherry` binary against a broker in this process, made of the protocol crate's own parts.
#[cfg(test)]
mod broker;
#[cfg(test)]
mod engines;
#[cfg(test)]
mod flags;
#[cfg(test)]
mod images;
#[cfg(test)]
mod join;
#[cfg(test)]
mod lists;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod pull;
#[cfg(test)]
mod push;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod terminal;
#[cfg(test)]
mod tunnel;
#[cfg(test)]
mod web;
#[cfg(test)]
mod world;
