use crate::world::*;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use wherry_broker::serve::ServeLimits;
use wherry_protocol::io::send;
use wherry_protocol::message::*;
use wherry_protocol::*;

fn blobs_on_disk(broker: &Broker) -> usize {
    let count =
        |sub: &str| std::fs::read_dir(broker.data().join("blobs").join(sub)).expect("a directory").count();
    count("sha256") + count("partial")
}

#[tokio::test(flavor = "multi_thread")]
async fn only_missing_layers_travel() {
    let broker = Broker::start().await;
    let user = broker.user(10).await;
    let manifest = user.push("web", b"layer one").await;
    let known = manifest.layers[0].digest;
    let new = Digest::of(b"new");
    assert_eq!(user.ask(Request::MissingBlobs(vec![known, new])).await, Reply::Missing(vec![new]));
    assert_eq!(user.put_blob(&manifest.layers[0], b"layer one").await, Reply::Blob { size: 9 });
    let Reply::Images(images) = user.ask(Request::Images).await else { panic!() };
    assert_eq!(images[0].name, image("web"));
    assert_eq!(user.ask(Request::RemoveImage(image("web"))).await, Reply::Done);
    assert_eq!(blobs_on_disk(&broker), 0);
    assert_eq!(user.refused(Request::RemoveImage(image("web"))).await.code, ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_account_does_not_learn_who_has_what() {
    let broker = Broker::start().await;
    let (one, two) = (broker.user(10).await, broker.user(11).await);
    let manifest = one.push("web", b"layer").await;
    let layer = manifest.layers[0].clone();
    assert_eq!(two.ask(Request::MissingBlobs(vec![layer.digest])).await, Reply::Missing(vec![layer.digest]));
    let stolen =
        Request::PutImage { name: image("web"), architecture: "amd64".into(), manifest: manifest.clone() };
    assert_eq!(two.refused(stolen).await.code, ErrorCode::NotFound);
    assert_eq!(two.put_blob(&layer, b"layer").await, Reply::Done, "it has to send the bytes itself");
    assert_eq!(blobs_on_disk(&broker), 2, "but they are on disk once");
    assert_eq!(one.ask(Request::RemoveImage(image("web"))).await, Reply::Done);
    assert_eq!(
        two.put_blob(&layer, b"layer").await,
        Reply::Blob { size: 5 },
        "and stay for whoever has them"
    );
    assert_eq!(blobs_on_disk(&broker), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_reads_its_own_small_blobs_and_nobody_elses() {
    let broker = Broker::start().await;
    let (one, two) = (broker.user(10).await, broker.user(11).await);
    let manifest = one.push("web", b"layer").await;
    let config = manifest.config.digest;
    let mut stream = one.open(&Request::ReadBlob(config)).await;
    assert_eq!(soon(reply(&mut stream)).await, Reply::Blob { size: manifest.config.size });
    let mut bytes = Vec::new();
    soon(futures_util::AsyncReadExt::read_to_end(&mut stream, &mut bytes)).await.unwrap();
    assert_eq!(Digest::of(&bytes), config);
    // What another account has, and what nobody has, look the same.
    let unknown = Digest::of(b"nobody has this");
    let foreign = two.refused(Request::ReadBlob(config)).await;
    let nothing = two.refused(Request::ReadBlob(unknown)).await;
    assert_eq!(foreign.code, ErrorCode::NotFound);
    assert_eq!(
        (foreign.code, foreign.message.replace(&config.to_string(), "")),
        (nothing.code, nothing.message.replace(&unknown.to_string(), ""))
    );
    // An admin is no exception: images are the account's own.
    let admin = broker.user(1).await;
    assert_eq!(admin.refused(Request::ReadBlob(config)).await.code, ErrorCode::NotFound);
    let bytes = vec![7; 4 * 1024 * 1024 + 1];
    let large = descriptor(&bytes, Media::LayerTar);
    assert_eq!(one.put_blob(&large, &bytes).await, Reply::Done);
    assert_eq!(one.refused(Request::ReadBlob(large.digest)).await.code, ErrorCode::TooLarge);
    assert_eq!(one.ask(Request::RemoveImage(image("web"))).await, Reply::Done);
    assert_eq!(one.refused(Request::ReadBlob(config)).await.code, ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_refused_and_leave_nothing() {
    let broker = Broker::start().await;
    let user = broker.user(10).await;
    let blob = descriptor(&[7; 300_000], Media::LayerTar);
    let reply = user.put_blob(&blob, &[8; 300_000]).await;
    assert!(matches!(&reply, Reply::Error(error) if error.code == ErrorCode::DigestMismatch), "{reply:?}");
    assert_eq!(blobs_on_disk(&broker), 0);
    assert_eq!(user.put_blob(&blob, &[7; 300_000]).await, Reply::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_push_leaves_nothing_and_can_be_resumed() {
    let broker = Broker::start().await;
    let user = broker.user(10).await;
    let done = descriptor(b"first layer", Media::LayerTar);
    assert_eq!(user.put_blob(&done, b"first layer").await, Reply::Done);
    let bytes = vec![9; 2_000_000];
    let blob = descriptor(&bytes, Media::LayerTar);
    let mut stream = user.open(&Request::PutBlob(blob.clone())).await;
    assert_eq!(soon(reply(&mut stream)).await, Reply::Done);
    futures_util::AsyncWriteExt::write_all(&mut stream, &bytes[..1_000_000]).await.unwrap();
    drop(stream);
    user.mux.close();
    let (key, account) = (user.key.clone(), user.account);
    drop(user);
    let broker = broker.restart().await;
    let user = broker.session(key, account).await;
    assert_eq!(blobs_on_disk(&broker), 1);
    let asked = Request::MissingBlobs(vec![done.digest, blob.digest]);
    assert_eq!(user.ask(asked).await, Reply::Missing(vec![blob.digest]));
    assert_eq!(user.put_blob(&blob, &bytes).await, Reply::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_needs_all_its_blobs() {
    let broker = Broker::start().await;
    let user = broker.user(10).await;
    let manifest = user.push("web", b"layer").await;
    let put = |manifest: &ImageManifest, architecture: &str| Request::PutImage {
        name: image("other"),
        architecture: architecture.into(),
        manifest: manifest.clone(),
    };
    let mut lacking = manifest.clone();
    lacking.layers.push(descriptor(b"not sent", Media::LayerTarGzip));
    assert_eq!(user.refused(put(&lacking, "amd64")).await.code, ErrorCode::NotFound);
    let mut wrong_size = manifest.clone();
    wrong_size.layers[0].size += 1;
    assert_eq!(user.refused(put(&wrong_size, "amd64")).await.code, ErrorCode::BadImage);
    let mut many = manifest.clone();
    many.layers = vec![manifest.layers[0].clone(); 129];
    assert_eq!(user.refused(put(&many, "amd64")).await.code, ErrorCode::BadImage);
    assert_eq!(user.refused(put(&manifest, "mips")).await.code, ErrorCode::BadImage);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_lost_from_disk_can_be_pushed_again() {
    let broker = Broker::start().await;
    let user = broker.user(10).await;
    let manifest = user.push("web", b"layer").await;
    let file = broker.data().join("blobs/sha256").join(manifest.layers[0].digest.hex());
    let (key, account) = (user.key.clone(), user.account);
    drop(user);
    std::fs::write(&file, b"damaged!").unwrap();
    let broker = broker.restart().await;
    let user = broker.session(key, account).await;
    let digest = manifest.layers[0].digest;
    assert_eq!(user.ask(Request::MissingBlobs(vec![digest])).await, Reply::Missing(vec![digest]));
    assert_eq!(user.put_blob(&manifest.layers[0], b"layer").await, Reply::Done);
    assert_eq!(std::fs::read(&file).unwrap(), b"layer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_board_gets_only_the_blobs_of_its_containers() {
    let broker = Broker::start().await;
    let (user, board, other) = (broker.user(10).await, broker.board(100).await, broker.board(101).await);
    let web = user.push("web", b"web layer").await;
    let secret = user.push("secret", b"secret layer").await;
    user.container(run_with("web", |run| run.node = Some("n1".into()))).await;
    assert_eq!(board.fetch(web.layers[0].digest).await.unwrap(), b"web layer");
    assert_eq!(board.fetch(web.config.digest).await.unwrap(), b"web");
    assert_eq!(board.fetch(secret.layers[0].digest).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(other.fetch(web.layers[0].digest).await.unwrap_err().code, ErrorCode::NotFound);
}

/// A tmpfs of the given size in MiB, unmounted when dropped. Needs root, and fails without.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: u32) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = format!("size={size}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "wherry-test"]).arg(dir.path());
        assert!(mount.status().expect("mount(8) is there").success(), "mounting needs root");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_the_broker_goes_on() {
    let disk = SmallDisk::mount(16);
    let place = Arc::new(Place::Given(disk.path().to_owned()));
    let broker = Broker::start_in(place, SecretKey::generate(&mut OsRandom), ServeLimits::default()).await;
    let (user, _board) = (broker.user(10).await, broker.board(100).await);
    user.push("web", &vec![1; 100_000]).await;
    let bytes = vec![2; 20_000_000];
    let reply = user.put_blob(&descriptor(&bytes, Media::LayerTar), &bytes).await;
    assert!(matches!(&reply, Reply::Error(error) if error.code == ErrorCode::DiskFull), "{reply:?}");
    // Fill what is left, then see that decisions can still be written down.
    drop(std::fs::write(disk.path().join("filler"), vec![3; 20_000_000]));
    for n in 0..50 {
        user.run(&format!("web{n}")).await;
    }
    let small = b"small".to_vec();
    std::fs::remove_file(disk.path().join("filler")).unwrap();
    assert_eq!(user.put_blob(&descriptor(&small, Media::LayerTar), &small).await, Reply::Done);
    let (key, account) = (user.key.clone(), user.account);
    drop(user);
    let broker = broker.restart().await;
    let user = broker.session(key, account).await;
    let Reply::Containers(all) = user.ask(Request::Containers { all_accounts: false }).await else {
        panic!()
    };
    assert_eq!(all.len(), 50);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absurd_blob_is_refused_before_it_travels() {
    let broker = Broker::start().await;
    let user = broker.user(10).await;
    let blob = Descriptor { digest: Digest([1; 32]), size: u64::MAX, media: Media::LayerTar };
    let mut stream = user.mux.open().await.unwrap();
    send(&mut stream, &Request::PutBlob(blob)).await.unwrap();
    let answer = soon(reply(&mut stream)).await;
    assert!(matches!(answer, Reply::Error(error) if error.code == ErrorCode::TooLarge));
}
