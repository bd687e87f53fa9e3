//! Bytes in and out of containers: layers unpacked, next to tar(1), sha256sum(1) and gzip(1) with the same layer in memory;
//! output logged, next to the same program behind a pipe; and what a container that floods its log does to the others. In
//! turns.
//! `cargo bench -p wherry-node --bench container_data [-- unpack|log|flood …]`, as root.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]
#[path = "ground/mod.rs"]
mod ground;
#[path = "../tests/support/mod.rs"]
mod support;

use ground::{Ground, Times, Words};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::spec;
use wherry_images::unpack::{Expected, LayerDir, Limits, unpack_layer};
use wherry_node::container::instance::Instance;
use wherry_protocol::Digest;
use wherry_protocol::message::{ContainerSpec, Media};

const RUNS: u64 = 50;
const MIB: usize = 1 << 20;

fn main() -> ExitCode {
    ground::main(&[("unpack", unpack), ("log", log), ("flood", flood)])
}

/// Like a small distribution: many small files, some large, text that shrinks and data that does not; some 16 MiB.
fn layer() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut seed = 1_u64;
    let mut random = || {
        // Knuth's MMIX generator; the upper half is random enough.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 32) as usize
    };
    for number in 0..1500 {
        let size = match number % 100 {
            0 => MIB / 2,
            _ => random() % (12 << 10),
        };
        let noise = number % 3 == 0;
        let content: Vec<u8> = (0..size)
            .map(|at| if noise { random() as u8 } else { b"the same words again, and "[at % 26] })
            .collect();
        let mut header = tar::Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(0o644);
        let path = format!("usr/lib/part{}/file{number}", number % 40);
        archive.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn unpack(_words: Words<'_>) {
    // In memory, so that it is not the disk that is measured.
    let base = tempfile::tempdir_in("/dev/shm").unwrap();
    let plain = base.path().join("layer.tar");
    let layer = layer();
    fs::write(&plain, &layer).unwrap();
    let gzipped = Command::new("gzip").args(["-6", "-k"]).arg(&plain).status().unwrap();
    assert!(gzipped.success(), "gzip failed");
    let diff_id = Digest::of(&layer);
    let whole = "tee >(sha256sum >sum) < layer.tar | tar xf - -C out";
    unpack_one(base.path(), "layer.tar", Media::LayerTar, (diff_id, layer.len()), whole);
    let zipped = "tee >(sha256sum >sum) < layer.tar.gz | gzip -dc | tee >(sha256sum >sum2) | tar xf - -C out";
    unpack_one(base.path(), "layer.tar.gz", Media::LayerTarGzip, (diff_id, layer.len()), zipped);
}

/// Each verifies what came and what it unpacks to, as an image wants it, and ends with all files written.
fn unpack_one(base: &Path, name: &str, media: Media, (diff_id, length): (Digest, usize), script: &str) {
    let path = base.join(name);
    let bytes = fs::read(&path).unwrap();
    let expected = Expected { digest: Digest::of(&bytes), size: bytes.len() as u64, diff_id: Some(diff_id) };
    let layers = base.join("layers");
    let (mut ours, mut theirs) = (Times::default(), Times::default());
    for _ in 0..RUNS {
        fs::create_dir(&layers).unwrap();
        let before = Instant::now();
        let source = File::open(&path).unwrap();
        let directory = LayerDir::new(&layers);
        let unpacked = unpack_layer(source, media, expected, &directory, &Limits::DEFAULT).unwrap();
        ours.push(before.elapsed());
        assert_eq!(unpacked.entries, 1500);
        fs::remove_dir_all(&layers).unwrap();
        theirs.push(in_shell(base, script));
    }
    let rate = |times: &Times| (length as f64 / 1e6) / (times.median() / 1000.0);
    println!(
        "{name:12} unpacked and verified: wherry {:4.0} MB/s ({}); tar and sha256sum, a process each: {:4.0} MB/s ({}); \
         {:.2} x wherry",
        rate(&ours),
        ours.shown(),
        rate(&theirs),
        theirs.shown(),
        theirs.median() / ours.median()
    );
}

fn in_shell(base: &Path, script: &str) -> Duration {
    let out = base.join("out");
    fs::create_dir(&out).unwrap();
    let before = Instant::now();
    let script = format!("set -e -o pipefail; {script}; wait; sync -f out");
    let status = Command::new("bash").args(["-c", &script]).current_dir(base).status().unwrap();
    assert!(status.success(), "{script} failed");
    let taken = before.elapsed();
    fs::remove_dir_all(out).unwrap();
    taken
}

/// So much output of one container, from its start to its end with all of it in the log.
fn log(_words: Words<'_>) {
    const BYTES: usize = 16 * MIB;
    let write = |block: &str| {
        let count = BYTES / block.parse::<usize>().unwrap();
        ["dd", "if=/dev/zero", &format!("bs={block}"), &format!("count={count}")].map(str::to_owned)
    };
    let mut ground = Ground::new("data");
    let mut id = 1;
    // Whole pieces, and short lines written one by one as most programs do.
    for block in ["65536", "128"] {
        let words = write(block);
        let (mut ours, mut theirs) = (Times::default(), Times::default());
        for _ in 0..RUNS {
            let command: Vec<&str> =
                ["/bin/busybox"].into_iter().chain(words.iter().map(String::as_str)).collect();
            let before = Instant::now();
            let instance = ground.start(id, spec(&command));
            ground.end_of(id);
            ours.push(before.elapsed());
            assert!(instance.log.start() > 0, "more than the log holds");
            ground.remove(id);
            id += 1;
            theirs.push(into_cat(&words));
        }
        let rate = |times: &Times| (BYTES as f64 / 1e6) / (times.median() / 1000.0);
        println!(
            "log, in writes of {block} bytes: {:5.0} MB/s, start and end of the container included ({}); the same \
             program | cat: {:5.0} MB/s ({})",
            rate(&ours),
            ours.shown(),
            rate(&theirs),
            theirs.shown()
        );
    }
}

/// The same program, behind a pipe whose other end copies into a file in memory.
fn into_cat(words: &[String]) -> Duration {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    let before = Instant::now();
    let mut writer = Command::new("/bin/busybox")
        .args(words)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pipe = writer.stdout.take().unwrap();
    let copied = Command::new("/bin/busybox").arg("cat").stdin(pipe).stdout(file).status().unwrap();
    assert!(copied.success() && writer.wait().unwrap().success());
    before.elapsed()
}

/// Starts, and echoes through input and log, while another container is silent, computes, or floods its log.
fn flood(_words: Words<'_>) {
    const OTHERS: [(&str, &[&str]); 3] = [
        ("beside nobody", &["/bin/sleep", "10000"]),
        ("beside one that computes", &["/bin/sh", "-c", "while :; do :; done"]),
        ("beside one that floods its log", &["/bin/busybox", "yes"]),
    ];
    const ECHO: u64 = 10;
    let mut ground = Ground::new("data");
    let others: Vec<Arc<Instance>> = (1..)
        .zip(OTHERS)
        .map(|(id, (_, command))| {
            let instance = ground.start(id, spec(command));
            pause(&instance, true);
            instance
        })
        .collect();
    let echo = ground.start(ECHO, ContainerSpec { stdin_open: true, ..spec(&["/bin/cat"]) });
    let mut times: [[Times; 2]; 3] = Default::default();
    for run in 0..RUNS {
        for (at, other) in others.iter().enumerate() {
            pause(other, false);
            // Until it is under way.
            std::thread::sleep(Duration::from_millis(5));
            times[at][0].push(ground.start_to_end(1000 + run * 3 + at as u64));
            times[at][1].push(echoed(&ground, &echo));
            pause(other, true);
        }
    }
    for ((name, _), [starts, echoes]) in OTHERS.iter().zip(&times) {
        let quiet = &times[0];
        println!(
            "{name:30}: start to end of `true` {} ({:.2} x); echo through input and log {} ({:.2} x)",
            starts.shown(),
            starts.median() / quiet[0].median(),
            echoes.shown(),
            echoes.median() / quiet[1].median()
        );
    }
    (1..=3).chain([ECHO]).for_each(|id| ground.remove(id));
}

/// The first process of a container obeys nobody inside, but everybody outside.
fn pause(instance: &Instance, pause: bool) {
    use nix::sys::signal::{Signal, kill};
    let pid = nix::unistd::Pid::from_raw(i32::try_from(instance.pid).unwrap());
    kill(pid, if pause { Signal::SIGSTOP } else { Signal::SIGCONT }).unwrap();
}

fn echoed(ground: &Ground, echo: &Instance) -> Duration {
    let mut progress = echo.log.follow();
    let end = progress.borrow_and_update().end;
    let before = Instant::now();
    ground.tokio.block_on(async {
        echo.input().write(b"hello\n").await.unwrap();
        while progress.borrow_and_update().end == end {
            progress.changed().await.unwrap();
        }
    });
    before.elapsed()
}
