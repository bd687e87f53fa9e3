use crate::world::*;
use wherry_broker::state::{Answer, Input, Output, RequestId};
use wherry_protocol::message::*;
use wherry_protocol::*;

fn deleted(out: &[Output]) -> Vec<Digest> {
    out.iter()
        .filter_map(|output| match output {
            Output::DeleteBlob(digest) => Some(*digest),
            _ => None,
        })
        .collect()
}

fn image(name: &str) -> ImageName {
    name.parse().expect("an image name")
}

#[test]
fn a_blob_that_no_image_names_goes_after_a_day() {
    let mut world = World::new();
    let user = world.user(10);
    let blob = world.upload(&user, b"unnamed", Media::LayerTar);
    assert!(deleted(&world.wait(23 * 3_600_000)).is_empty());
    assert_eq!(deleted(&world.wait(2 * 3_600_000)), [blob.digest]);
    assert_eq!(
        world.reply(&user, Request::MissingBlobs(vec![blob.digest])),
        Reply::Missing(vec![blob.digest])
    );
}

#[test]
fn naming_again_lets_go_of_what_only_the_old_image_needed() {
    let mut world = World::new();
    let user = world.user(10);
    let old = world.image(&user, "web");
    let layer = world.upload(&user, b"new layer", Media::LayerTar);
    let manifest = ImageManifest { config: old.config.clone(), layers: vec![layer] };
    let put = Request::PutImage { name: image("web"), architecture: "amd64".into(), manifest };
    let (_, out) = world.ask(user.session, put);
    assert_eq!(deleted(&out), [old.layers[0].digest]);
}

#[test]
fn a_container_keeps_its_image() {
    let mut world = World::new();
    let user = world.user(10);
    let board = world.board(100);
    let manifest = world.image(&user, "web");
    let info = world.running(&user, "web", board, "n1");
    assert_eq!(world.refused(&user, Request::RemoveImage(image("web"))).code, ErrorCode::InUse);
    // The name may go to another image; the container's blobs stay.
    let layer = world.upload(&user, b"new layer", Media::LayerTar);
    let newer = ImageManifest { config: manifest.config.clone(), layers: vec![layer] };
    let put = Request::PutImage { name: image("web"), architecture: "amd64".into(), manifest: newer };
    let (_, out) = world.ask(user.session, put);
    assert!(deleted(&out).is_empty());
    let request = RequestId(world.number());
    let fetch = Input::Fetch { request, session: board.session, digest: manifest.layers[0].digest };
    assert!(matches!(answer(&world.step(fetch), request), Some(Answer::Blob(Ok(_)))));
    let (_, out) = world.ask(user.session, Request::Remove { container: id(&info), force: true });
    assert_eq!(deleted(&out), [manifest.layers[0].digest]);
}

#[test]
fn a_blob_that_is_just_coming_is_not_deleted() {
    let mut world = World::new();
    let (one, two) = (world.user(10), world.user(11));
    let manifest = world.image(&one, "web");
    let layer = manifest.layers[0].clone();
    let (upload, _) = world.ask(two.session, Request::PutBlob(layer.clone()));
    let (_, out) = world.ask(one.session, Request::RemoveImage(image("web")));
    assert_eq!(deleted(&out), [manifest.config.digest]);
    world.step(Input::Stored { request: upload, session: two.session, blob: layer.clone() });
    assert_eq!(world.reply(&two, Request::PutBlob(layer.clone())), Reply::Blob { size: layer.size });
}

#[test]
fn an_upload_that_fails_leaves_nothing() {
    let mut world = World::new();
    let user = world.user(10);
    let blob = descriptor(b"cut", Media::LayerTar);
    let (upload, _) = world.ask(user.session, Request::PutBlob(blob.clone()));
    assert_eq!(deleted(&world.step(Input::Abandon(upload))), [blob.digest]);
    // A late word that it is stored after all counts for nothing.
    let out = world.step(Input::Stored { request: upload, session: user.session, blob: blob.clone() });
    assert!(matches!(reply(&out, upload), Some(Reply::Error(_))));
    assert_eq!(
        world.reply(&user, Request::MissingBlobs(vec![blob.digest])),
        Reply::Missing(vec![blob.digest])
    );
}

#[test]
fn a_lost_blob_is_asked_for_again() {
    let mut world = World::new();
    let user = world.user(10);
    let manifest = world.image(&user, "web");
    let digest = manifest.layers[0].digest;
    world.step(Input::Lost(digest));
    assert_eq!(world.reply(&user, Request::MissingBlobs(vec![digest])), Reply::Missing(vec![digest]));
    world.upload(&user, b"layer of web", Media::LayerTar);
    assert_eq!(world.reply(&user, Request::MissingBlobs(vec![digest])), Reply::Missing(vec![]));
}

#[test]
fn too_many_questions_at_once_are_refused() {
    let mut world = World::new();
    let user = world.user(10);
    let many = Request::MissingBlobs(vec![Digest([1; 32]); 1025]);
    assert_eq!(world.refused(&user, many).code, ErrorCode::TooLarge);
}

#[test]
fn a_container_needs_a_board_of_its_images_architecture() {
    let mut world = World::new();
    let user = world.user(10);
    world.image(&user, "web");
    assert!(world.refused(&user, run("web", |_| {})).message.starts_with("no node is connected"));
    world.enrol(100, Role::Node);
    let arm = NodeFacts { architecture: "arm64".into(), ..facts(100) };
    world.arrive(100, arm, Vec::new());
    let error = world.refused(&user, run("web", |_| {}));
    assert_eq!(error.message, "no node can take it: host100 is arm64, web:latest is amd64");
    let error = world.refused(&user, run("web", |run| run.node = Some("n1".into())));
    assert_eq!(error.code, ErrorCode::NoCapacity);
    let error = world.refused(&user, run("web", |run| run.node = Some("n9".into())));
    assert_eq!(error.code, ErrorCode::NotFound);
}
