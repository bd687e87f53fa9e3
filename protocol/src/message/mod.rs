//! The messages: one request opens one stream; what follows depends on the request.
//!
//! ```text
//! any stream      u32 length (little endian) ‖ postcard message, again and again; or raw bytes after a reply says so
//! user → broker   Request            → Reply, then Frames or raw bytes (see each request)
//! node → broker   NodeCall           → Control: ToNode/FromNode for the life of the session; FetchBlob: Reply, raw bytes; Web: Reply, raw bytes both ways
//! broker → node   Routed             → Reply, then as the user's request
//! enrolment       EnrolRequest       → EnrolReply
//! first stream    Hello              → HelloReply
//! ```
//!
//! Every enum is append-only; the order of variants is the wire format and is pinned by tests.
mod bytes;
mod condition;
mod container;
mod endpoint;
mod network;
mod node;
mod session;
mod user;

pub use condition::*;
pub use container::*;
pub use endpoint::*;
pub use network::*;
pub use node::*;
pub use session::*;
pub use user::*;
