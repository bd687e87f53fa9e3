//! The web endpoint.
