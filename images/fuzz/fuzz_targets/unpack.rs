//! Any bytes as a layer, packed in each way: nothing appears outside of the layer's own directory. Run as root.
#![no_main]
use libfuzzer_sys::fuzz_target;
use std::fs;
use wherry_images::unpack::{Expected, LayerDir, Limits, unpack_layer};
use wherry_protocol::Digest;
use wherry_protocol::message::Media;

const LIMITS: Limits = Limits { entries: 100, bytes: 1024 * 1024, ..Limits::DEFAULT };

fuzz_target!(|bytes: &[u8]| {
    let base = tempfile::tempdir().expect("a temporary directory");
    let layers = base.path().join("layers");
    fs::create_dir(&layers).expect("a directory");
    let expected = Expected { digest: Digest::of(bytes), size: bytes.len() as u64, diff_id: None };
    for media in [Media::LayerTar, Media::LayerTarGzip, Media::LayerTarZstd] {
        let done = unpack_layer(bytes, media, expected, &LayerDir::new(&layers), &LIMITS).is_ok();
        assert_eq!(fs::read_dir(&layers).expect("it is there").count(), usize::from(done));
        if done {
            fs::remove_dir_all(layers.join(expected.digest.hex())).expect("it can be removed");
        }
    }
    assert_eq!(fs::read_dir(base.path()).expect("it is there").count(), 1, "only the directory of layers");
});
