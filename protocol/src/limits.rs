//! Every bound of the wire in one place: its unit, the attack it stops, its default.

/// Bounds that both ends apply to what the other one sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest sealed record, in bytes of plaintext. Stops a peer from making us allocate by announcing a huge
    /// length. 16 KiB: the size TLS 1.3 settled on (RFC 8446 §5.1), good for latency on slow boards.
    pub record_bytes: usize,
    /// Largest postcard message, in bytes. Stops memory exhaustion by one request. 1 MiB holds the desired state of
    /// a node with some 1000 containers.
    pub message_bytes: usize,
    /// Streams open at once on one session. Stops a peer from opening streams without end.
    pub streams: usize,
    /// Streams that a user's program opens at once on its session. Brokers take some more, because a stream that has ended
    /// here may not have ended there yet.
    pub user_streams: usize,
    /// Receive window of one session over all of its streams, in bytes: the most a slow reader can make us hold.
    pub session_window_bytes: usize,
    /// Time for a handshake, in seconds. Stops half-open connections from piling up (slowloris).
    pub handshake_seconds: u64,
    /// Records under one key before a new key exchange. 2^32 as in design; far below the nonce space of 2^64.
    pub rekey_records: u64,
    /// Seconds under one key before a new key exchange, so that a key stolen from memory opens an hour of traffic.
    pub rekey_seconds: u64,
    /// Data in one [`crate::message::Frame`], in bytes.
    pub chunk_bytes: usize,
}

impl Limits {
    /// The defaults that every Wherry process uses.
    pub const DEFAULT: Self = Self {
        record_bytes: 16 * 1024,
        message_bytes: 1024 * 1024,
        streams: 512,
        user_streams: 128,
        session_window_bytes: 16 * 1024 * 1024 + 512 * 256 * 1024,
        handshake_seconds: 10,
        rekey_records: 1 << 32,
        rekey_seconds: 3600,
        chunk_bytes: 32 * 1024,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Largest blob (layer, configuration, manifest) accepted, in bytes: a sanity bound, the disk is the real one.
pub const MAX_BLOB_BYTES: u64 = 64 * 1024 * 1024 * 1024;
/// Largest blob that an account can read back, in bytes: configurations, of which registries accept no larger ones. Layers
/// stay on the cluster; handing them out would make of a small board a file server.
pub const MAX_READ_BLOB_BYTES: u64 = 4 * 1024 * 1024;
/// Layers in one image. Docker's own limit is 127; overlayfs takes 500.
pub const MAX_LAYERS: usize = 128;
/// Arguments plus environment of a container, in bytes: half of the kernel's ARG_MAX of 128 KiB per string area.
pub const MAX_ARGUMENT_BYTES: usize = 64 * 1024;
/// Containers of one node.
pub const MAX_CONTAINERS_PER_NODE: usize = 1000;
