//! A whole session with known keys, byte by byte: the example of `docs/protocol.md`.
//!
//! `WHERRY_BLESS=1 cargo test -p wherry-protocol --test transcript` writes the golden file anew.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod common;

use common::{World, drain};
use std::fmt::Write as _;
use std::path::Path;
use wherry_protocol::message::{Reply, Request};
use wherry_protocol::{Limits, SecretKey};

struct Script(String);

impl Script {
    fn line(&mut self, name: &str, bytes: &[u8]) {
        writeln!(self.0, "{name} ({} bytes)", bytes.len()).unwrap();
        for row in bytes.chunks(32) {
            let hex: String = row.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(self.0, "  {hex}").unwrap();
        }
    }
}

fn transcript() -> String {
    let mut world = World::new(2026);
    world.limits = Limits { rekey_records: 128, ..Limits::DEFAULT };
    let mut script = Script(String::new());
    script.line("client's long-term secret key c", world.client.as_bytes());
    script.line("client's long-term public key C", &world.client.public().0);
    script.line("server's long-term secret key s", world.server.as_bytes());
    script.line("server's long-term public key S", &world.server.public().0);

    // What the generator gives next: first the jar took its two keys, now come the ephemeral ones.
    let mut again = World::new(2026).random;
    let (client_ephemeral, server_ephemeral) =
        (SecretKey::generate(&mut again), SecretKey::generate(&mut again));
    script.line("client's ephemeral secret key c'", client_ephemeral.as_bytes());
    script.line("server's ephemeral secret key s'", server_ephemeral.as_bytes());

    let (client, hello) = world.greet();
    assert_eq!(hello[8..40], client_ephemeral.public().0);
    script.line("client: HELLO", &hello);
    let (server, welcome) = world.welcome(&hello).unwrap();
    script.line("server: WELCOME", &welcome);
    let (mut client, initiate) = client.welcome(&welcome, world.now_ms, &world.limits).unwrap();
    script.line("client: INITIATE", &initiate);
    let mut server = world.initiate(server, &initiate).unwrap();
    let ready = drain(&mut server);
    script.line("server: READY, record 0", &ready);
    world.open(&mut client, &ready).unwrap();

    let mut request = 1u32.to_le_bytes().to_vec();
    request.extend(postcard::to_stdvec(&Request::Ping).unwrap());
    script.line("plaintext: message Request::Ping", &request);
    let record = world.seal(&mut client, &request);
    script.line("client: DATA, record 0", &record);
    world.open(&mut server, &record).unwrap();
    let mut reply = 1u32.to_le_bytes().to_vec();
    reply.extend(postcard::to_stdvec(&Reply::Done).unwrap());
    script.line("plaintext: message Reply::Done", &reply);
    let record = world.seal(&mut server, &reply);
    script.line("server: DATA, record 1", &record);
    world.open(&mut client, &record).unwrap();

    world.now_ms += 3_600_000;
    let offer = world.seal(&mut client, b"an hour later");
    script.line("client: REKEY, record 1; DATA \"an hour later\", record 2", &offer);
    world.open(&mut server, &offer).unwrap();
    let answer = drain(&mut server);
    script.line("server: REKEY, record 2; SWITCH, record 3", &answer);
    world.open(&mut client, &answer).unwrap();
    let switch = drain(&mut client);
    script.line("client: SWITCH, record 3", &switch);
    world.open(&mut server, &switch).unwrap();
    let record = world.seal(&mut client, b"new keys");
    script.line("client: DATA \"new keys\", record 0 under the new key", &record);
    world.open(&mut server, &record).unwrap();
    client.close();
    let end = drain(&mut client);
    script.line("client: CLOSE, record 1", &end);
    world.open(&mut server, &end).unwrap();
    assert_eq!(server.transport_ended(), Ok(()));
    script.0
}

#[test]
fn the_golden_transcript_is_what_happens() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/transcript.txt");
    let happened = transcript();
    if std::env::var_os("WHERRY_BLESS").is_some() {
        std::fs::write(&path, &happened).unwrap();
    }
    assert_eq!(happened, std::fs::read_to_string(&path).unwrap());
}
