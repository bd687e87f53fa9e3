//! Bounds of the broker's state: unit, why, default.

/// Time after which a non-detached container goes when the session that ran it has gone and none of the same key has
/// come since, in milliseconds: design §4, a laptop may lose its network for two minutes.
pub(crate) const SESSION_GRACE_MS: u64 = 120_000;
/// Time for which a container with `auto_remove` stays visible after it ended, in milliseconds: whoever ran it must be
/// able to read its last output and its exit status.
pub(crate) const AUTO_REMOVE_MS: u64 = 10_000;
/// Time without a word after which a board counts as gone, in milliseconds. Boards report every few seconds; TCP alone
/// would take 15 minutes to notice a cut cable.
pub(crate) const NODE_SILENCE_MS: u64 = 30_000;
/// Time for boards to apply a network revision, in milliseconds: it takes one a few.
pub(crate) const NETWORK_MS: u64 = 15_000;
/// Time between new keys for the boards' tunnels, in milliseconds.
pub(crate) const REKEY_MS: u64 = 3_600_000;
/// From new keys until boards send with them, in milliseconds: they reach all boards, and the boards one another, in seconds.
pub(crate) const REKEY_SETTLE_MS: u64 = 60_000;
/// Time until a board that could not apply its network is asked again, in milliseconds.
pub(crate) const NETWORK_RETRY_MS: u64 = 10_000;
/// Time for a board to stop or remove a container beyond the grace that was asked for, in milliseconds: unmounting on a
/// slow SD card takes seconds.
pub(crate) const SETTLE_MS: u64 = 30_000;
/// Time for which a blob that no image names is kept, in milliseconds: long enough to resume a broken push next day.
pub(crate) const UNNAMED_BLOB_MS: u64 = 24 * 3_600_000;
/// Longest life of a token, in seconds.
pub(crate) const MAX_TOKEN_SECONDS: u32 = 30 * 24 * 3600;
/// Tokens not claimed yet: an admin's script that loops must not fill the disk.
pub(crate) const MAX_TOKENS: usize = 1000;
/// Accounts. The store holds them all in memory.
pub(crate) const MAX_ACCOUNTS: usize = 10_000;
/// Named images of one account.
pub(crate) const MAX_IMAGES_PER_ACCOUNT: usize = 1000;
/// Blobs of one account.
pub(crate) const MAX_BLOBS_PER_ACCOUNT: usize = 20_000;
/// Digests in one question.
pub(crate) const MAX_QUESTION_DIGESTS: usize = 1024;
/// Published ports of one container.
pub(crate) const MAX_PUBLISHED: usize = 64;
/// Labels, mounts of one container.
pub(crate) const MAX_LABELS: usize = 64;
/// Labels of one board.
pub(crate) const MAX_NODE_LABELS: usize = 64;
/// Bytes of desired containers that one board's `Sync` may take: with the network below it stays under the message
/// limit of 1 MiB.
pub(crate) const MAX_DESIRED_BYTES: usize = 640 * 1024;
/// Bytes of network that one board's `Sync` may take.
pub(crate) const MAX_NETWORK_BYTES: usize = 320 * 1024;
/// Connections that rules may put on one board: with room for as many that were allowed one by one they stay below
/// [`MAX_NETWORK_BYTES`], names included.
pub(crate) const MAX_LINKS_PER_BOARD: usize = 2000;
/// Rules of one account.
pub(crate) const MAX_RULES: usize = 256;
/// Name and value of a label in a rule, in bytes.
pub(crate) const MAX_LABEL_BYTES: usize = 512;
/// Bytes of one list in a reply; a longer one leaves out how the containers are run.
pub(crate) const MAX_LIST_BYTES: usize = 900 * 1024;
/// Memory that a container without a bound is expected to take, in bytes: only for spreading a burst of runs before
/// the boards have reported their new load.
pub(crate) const EXPECTED_MEMORY_BYTES: u64 = 32 * 1024 * 1024;
/// TCP ports of the broker that users cannot publish: sessions, enrolment, layers, discovery, volumes.
pub(crate) const RESERVED_PORTS: [u16; 5] = [2020, 2021, 1025, 1026, 2049];
/// UDP ports of any board that users cannot publish: DNS for its containers, DHCP, NTP, discovery, WireGuard.
pub(crate) const RESERVED_UDP_PORTS: [u16; 7] = [53, 67, 68, 123, 1026, 51820, 51821];
/// Networks of one published port.
pub(crate) const MAX_ALLOWED_NETWORKS: usize = 32;
/// Longest text of a board's facts that is kept, in bytes.
pub(crate) const MAX_FACT_BYTES: usize = 128;
/// Names on the web endpoint of one account.
pub(crate) const MAX_ENDPOINTS: usize = 64;
/// Routes of one name.
pub(crate) const MAX_ROUTES: usize = 32;
/// Access rules of one name.
pub(crate) const MAX_ENDPOINT_RULES: usize = 64;
/// Methods of one access rule.
pub(crate) const MAX_METHODS: usize = 16;
/// Callers of one access rule.
pub(crate) const MAX_CALLERS: usize = 32;
/// A certificate chain, a key or a bundle of authorities, in bytes of PEM: a chain of four takes about 8 KiB.
pub(crate) const MAX_PEM_BYTES: usize = 64 * 1024;
/// Ports of the web endpoint: nobody publishes them while a name is served.
pub(crate) const WEB_PORTS: [u16; 2] = [80, 443];
/// Bytes of names that one board is told for containers that rules name as callers.
pub(crate) const MAX_CALLER_BYTES: usize = 64 * 1024;
/// Domains of one account.
pub(crate) const MAX_DOMAINS: usize = 64;
/// Domains of one account whose proof is awaited.
pub(crate) const MAX_CLAIMS: usize = 16;
/// Time for a proof, in seconds: names servers and their caches need hours to show a new record.
pub(crate) const CLAIM_SECONDS: u64 = 6 * 3600;
