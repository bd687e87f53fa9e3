//! An image made of a container: its image's layers, and one more with what it has changed.
use crate::container::{Changes, Container};
use crate::error::ClientError;
use crate::upload::read_ahead;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Seek as _, Write};
use std::time::SystemTime;
use wherry_protocol::message::{ChangesQuery, Descriptor, ImageInfo, ImageManifest, ImageName, Media};
use wherry_protocol::{Digest, ErrorCode, WireError};

/// A tar archive of nothing: two blocks of zeros (POSIX pax, "Archive format"), as our nodes write it.
const MOST_EMPTY_BYTES: u64 = 2 * 512;

/// What is written into the new image's history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotNotes {
    /// A sentence about it.
    pub comment: Option<String>,
    /// Who made it.
    pub author: Option<String>,
}

impl Container {
    /// Makes an image of what the container's files are now. Files that it changes meanwhile may be caught half-way: pause
    /// it before. Volumes and file systems in memory are no part of it.
    pub async fn snapshot(&self, name: &ImageName, notes: &SnapshotNotes) -> Result<ImageInfo, ClientError> {
        let mut changes = self.changes(ChangesQuery::Layer).await?;
        let spooled = spool(&mut changes).await?;
        let diff_id = (spooled.plain_bytes > MOST_EMPTY_BYTES).then_some(spooled.diff_id);
        let (config, architecture) = new_config(&changes.config, diff_id, notes, SystemTime::now())?;
        let location = self.location();
        let mut layers = changes.manifest.layers;
        if diff_id.is_some() {
            let file = spooled.file;
            location.put_blob(&spooled.layer, || Ok(read_ahead(file, ClientError::Spool)), |_| {}).await?;
            layers.push(spooled.layer);
        }
        let config = location.put_bytes(config, Media::Config).await?;
        location.put_image(name, &architecture, &ImageManifest { config, layers }).await
    }
}

/// A layer, compressed, in a file that has no name.
struct Spooled {
    file: File,
    layer: Descriptor,
    /// Of the archive before it was compressed.
    diff_id: Digest,
    plain_bytes: u64,
}

/// Counts and hashes what goes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn digest(self) -> (W, Digest, u64) {
        (self.inner, Digest(self.hash.finalize().into()), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

async fn spool(changes: &mut Changes) -> Result<Spooled, ClientError> {
    let file = tempfile::tempfile().map_err(ClientError::Spool)?;
    let mut sink = Hashing::new(GzEncoder::new(Hashing::new(file), Compression::fast()));
    while let Some(bytes) = changes.next().await? {
        sink.write_all(&bytes).map_err(ClientError::Spool)?;
    }
    let (encoder, diff_id, plain_bytes) = sink.digest();
    let (mut file, digest, size) = encoder.finish().map_err(ClientError::Spool)?.digest();
    file.rewind().map_err(ClientError::Spool)?;
    let layer = Descriptor { digest, size, media: Media::LayerTarGzip };
    Ok(Spooled { file, layer, diff_id, plain_bytes })
}

/// The configuration with one more layer and one more line of history; and the image's architecture. Everything that is not
/// known here stays as it is.
fn new_config(
    base: &[u8],
    diff_id: Option<Digest>,
    notes: &SnapshotNotes,
    now: SystemTime,
) -> Result<(Vec<u8>, String), ClientError> {
    let mut config: Map<String, Value> = serde_json::from_slice(base).map_err(|_| unusable())?;
    let created = humantime::format_rfc3339_seconds(now).to_string();
    if let Some(diff_id) = diff_id {
        let diff_ids = config.get_mut("rootfs").and_then(|rootfs| rootfs.get_mut("diff_ids"));
        diff_ids.and_then(Value::as_array_mut).ok_or_else(unusable)?.push(json!(diff_id.to_string()));
    }
    let mut line = json!({ "created": created, "created_by": "wherry commit" });
    for (key, value) in [("comment", &notes.comment), ("author", &notes.author)] {
        if let Some(value) = value {
            line[key] = json!(value);
        }
    }
    if diff_id.is_none() {
        line["empty_layer"] = json!(true);
    }
    config.insert("created".into(), json!(created));
    if let Some(author) = &notes.author {
        config.insert("author".into(), json!(author));
    }
    let history = config.entry("history").or_insert_with(|| json!([]));
    history.as_array_mut().ok_or_else(unusable)?.push(line);
    let architecture = config.get("architecture").and_then(Value::as_str).ok_or_else(unusable)?.to_owned();
    let bytes = serde_json::to_vec(&config).map_err(|_| unusable())?;
    Ok((bytes, architecture))
}

fn unusable() -> ClientError {
    let message = "the configuration of the container's image is not what it should be";
    ClientError::Refused(WireError::new(ErrorCode::BadImage, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const BASE: &str = r#"{"architecture":"arm64","os":"linux","config":{"Cmd":["sh"]},"x-own":[1],
        "rootfs":{"type":"layers","diff_ids":["sha256:aa"]},"history":[{"created_by":"first"}]}"#;

    fn made(base: &str, diff_id: Option<Digest>, notes: &SnapshotNotes) -> Result<Value, ClientError> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let (bytes, architecture) = new_config(base.as_bytes(), diff_id, notes, now)?;
        assert_eq!(architecture, "arm64");
        Ok(serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn one_more_layer_and_all_else_as_before() {
        let notes = SnapshotNotes { comment: Some("as of today".into()), author: Some("me".into()) };
        let layer = Digest::of(b"layer");
        let made = made(BASE, Some(layer), &notes).unwrap();
        let expected = json!({
            "architecture": "arm64", "os": "linux", "config": { "Cmd": ["sh"] }, "x-own": [1],
            "created": "2001-09-09T01:46:40Z", "author": "me",
            "rootfs": { "type": "layers", "diff_ids": ["sha256:aa", layer.to_string()] },
            "history": [{ "created_by": "first" }, { "created": "2001-09-09T01:46:40Z", "created_by": "wherry commit",
                "comment": "as of today", "author": "me" }],
        });
        assert_eq!(made, expected);
    }

    #[test]
    fn without_changes_there_is_no_layer() {
        let without = BASE.replace(r#","history":[{"created_by":"first"}]"#, "");
        let made = made(&without, None, &SnapshotNotes::default()).unwrap();
        assert_eq!(made["rootfs"]["diff_ids"], json!(["sha256:aa"]));
        assert_eq!(made["history"][0]["empty_layer"], json!(true));
    }

    #[test]
    fn nonsense_is_refused() {
        for base in [
            "",
            "[]",
            "{}",
            r#"{"architecture":"arm64"}"#,
            r#"{"rootfs":{"diff_ids":7},"architecture":"arm64"}"#,
        ] {
            let error = made(base, Some(Digest::of(b"x")), &SnapshotNotes::default()).unwrap_err();
            assert!(error.to_string().contains("not what it should be"), "{base}");
        }
    }
}
