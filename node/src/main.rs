//! The node's one binary: PID 1, the service and the child between clone and exec.
fn main() {}
