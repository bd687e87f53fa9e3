use super::*;
use proptest::prelude::*;

fn image(json: &str) -> ImageConfig {
    ImageConfig::parse(json.as_bytes()).unwrap()
}

fn spec(change: impl FnOnce(&mut ContainerSpec)) -> ContainerSpec {
    let mut spec = ContainerSpec::default();
    change(&mut spec);
    spec
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

const NGINX: &str = r#"{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","history":[],
  "config":{"Env":["PATH=/bin","A=1","A=2","BARE"],"Entrypoint":["/entry"],"Cmd":["nginx","-g"],"User":"www",
  "WorkingDir":"/srv","StopSignal":"SIGQUIT","Labels":{"x":"y"},"ExposedPorts":{"80/tcp":{}}},
  "rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#;

#[test]
fn the_image_alone_decides_when_nothing_is_asked() {
    let settings = ProcessSettings::merge(&image(NGINX), &ContainerSpec::default()).unwrap();
    let expected = ProcessSettings {
        argv: words("/entry nginx -g"),
        env: [("PATH", "/bin"), ("A", "2"), ("BARE", "")].map(|(a, b)| (a.into(), b.into())).to_vec(),
        workdir: "/srv".into(),
        user: "www".into(),
        stop_signal: 3,
    };
    assert_eq!(settings, expected);
}

#[test]
fn command_and_entrypoint_combine_as_in_docker() {
    let argv = |entrypoint: Option<&str>, command: &str| {
        let spec = spec(|s| {
            s.entrypoint = entrypoint.map(words);
            s.command = words(command);
        });
        ProcessSettings::merge(&image(NGINX), &spec).map(|s| s.argv.join(" "))
    };
    assert_eq!(argv(None, "sh").unwrap(), "/entry sh");
    assert_eq!(argv(Some("/bin/x"), "").unwrap(), "/bin/x");
    assert_eq!(argv(Some("/bin/x"), "y z").unwrap(), "/bin/x y z");
    assert_eq!(argv(Some(""), "y").unwrap(), "y");
    assert!(matches!(argv(Some(""), ""), Err(OciError::NoCommand)));
}

#[test]
fn an_empty_image_gets_sane_defaults() {
    let settings = ProcessSettings::merge(&image("{}"), &spec(|s| s.command = words("true"))).unwrap();
    assert_eq!(settings.env, [("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
    assert_eq!((settings.workdir.as_str(), settings.user.as_str(), settings.stop_signal), ("/", "", 15));
}

#[test]
fn settings_that_no_process_can_have_are_refused() {
    let cases = [
        (
            spec(|s| s.command = vec!["a\0b".into()]),
            "argument 'a\\0b' cannot be used: it contains a NUL byte",
        ),
        (
            spec(|s| s.env = vec![("A=B".into(), String::new())]),
            "environment variable 'A=B' cannot be used: its name is empty or contains '='",
        ),
        (
            spec(|s| s.env = vec![(String::new(), "x".into())]),
            "environment variable '' cannot be used: its name is empty or contains '='",
        ),
        (
            spec(|s| s.workdir = Some("srv".into())),
            "working directory 'srv' cannot be used: it is not an absolute path",
        ),
        (
            spec(|s| s.command = vec!["x".repeat(70_000)]),
            "the image's command line and environment is too large: 70066, at most 65536 accepted",
        ),
    ];
    for (mut spec, sentence) in cases {
        if spec.command.is_empty() {
            spec.command = words("true");
        }
        let error = ProcessSettings::merge(&image("{}"), &spec).unwrap_err();
        assert_eq!(error.to_string(), sentence);
    }
}

#[test]
fn signals_by_name_and_number() {
    let cases = [
        ("SIGTERM", Some(15)),
        ("TERM", Some(15)),
        ("9", Some(9)),
        ("SIGSYS", Some(31)),
        ("RTMIN", Some(34)),
        ("SIGRTMIN+3", Some(37)),
        ("RTMAX-1", Some(63)),
        ("RTMIN+31", None),
        ("0", None),
        ("65", None),
        ("nonsense", None),
        ("", None),
    ];
    for (text, number) in cases {
        assert_eq!(signal_number(text), number, "{text}");
    }
}

fn index(entries: &str) -> Index {
    Index::parse(format!("{{\"schemaVersion\":2,\"manifests\":[{entries}]}}").as_bytes()).unwrap()
}

fn entry(os: &str, architecture: &str) -> String {
    format!(
        r#"{{"mediaType":"m","digest":"{os}-{architecture}","size":1,"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#
    )
}

#[test]
fn the_right_platform_is_chosen() {
    let entries = [entry("linux", "amd64"), entry("unknown", "unknown"), entry("linux", "arm64")].join(",");
    let index_of_three = index(&entries);
    assert_eq!(index_of_three.choose("arm64").unwrap().digest, "linux-arm64");
    assert_eq!(
        index_of_three.choose("riscv64").unwrap_err().to_string(),
        "the image is not available for linux/riscv64, only for linux/amd64, unknown/unknown, linux/arm64"
    );
    assert_eq!(index(r#"{"digest":"d","size":1}"#).choose("arm64").unwrap().digest, "d");
    assert!(image(NGINX).check_platform("amd64").is_ok());
    assert!(image("{}").check_platform("amd64").is_ok());
    assert!(image(NGINX).check_platform("arm64").is_err());
}

fn manifest(layer_type: &str, digest: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{digest}","size":2}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{digest}","size":10}}]}}"#
    )
}

#[test]
fn manifests_of_both_schools_are_understood() {
    let digest = Digest::of(b"x");
    for (media_type, media) in [
        ("application/vnd.oci.image.layer.v1.tar", Media::LayerTar),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Media::LayerTarGzip),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Media::LayerTarZstd),
    ] {
        let text = manifest(media_type, &digest.to_string());
        let checked = Manifest::parse(text.as_bytes()).unwrap().checked().unwrap();
        assert_eq!(checked.config, Descriptor { digest, size: 2, media: Media::Config });
        assert_eq!(checked.layers, [Descriptor { digest, size: 10, media }]);
    }
}

#[test]
fn unusable_manifests_are_refused_in_one_sentence() {
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let good = Digest::of(b"x").to_string();
    let parse = |text: &str| Manifest::parse(text.as_bytes()).and_then(|m| m.checked().map(drop));
    assert!(matches!(parse(&manifest(foreign, &good)), Err(OciError::Media(m)) if m == foreign));
    assert!(matches!(parse(&manifest("x", "sha512:00")), Err(OciError::Digest(_))));
    assert!(matches!(parse("[]"), Err(OciError::Json { .. })));
    let layer = r#"{"digest":"x","size":1},"#.repeat(limits::MAX_LAYERS + 1);
    let many =
        format!(r#"{{"config":{{"digest":"x","size":1}},"layers":[{}]}}"#, layer.trim_end_matches(','));
    assert!(matches!(parse(&many), Err(OciError::TooLarge { what: "list of layers", .. })));
    let huge = format!(r#"{{"config":{{"digest":"{good}","size":{}}},"layers":[]}}"#, u64::MAX);
    assert!(matches!(parse(&huge), Err(OciError::TooLarge { what: "blob", .. })));
    let padded = vec![b' '; MAX_DOCUMENT_BYTES + 1];
    assert!(matches!(Manifest::parse(&padded), Err(OciError::TooLarge { what: "manifest", .. })));
}

#[test]
fn layers_and_diff_ids_pair_up() {
    assert_eq!(image(NGINX).diff_ids(1).unwrap(), [Digest::of(b"")]);
    assert!(matches!(image(NGINX).diff_ids(2), Err(OciError::LayerCount { layers: 2, diff_ids: 1 })));
}

#[test]
fn docker_archives_list_their_images() {
    let text = br#"[{"Config":"a.json","RepoTags":["web:1"],"Layers":["l/layer.tar"]},{"Config":"b.json","RepoTags":null}]"#;
    let images = DockerArchiveImage::parse_list(text).unwrap();
    assert_eq!(images[0].repo_tags.as_deref(), Some(&["web:1".to_owned()][..]));
    assert!(images[1].repo_tags.is_none() && images[1].layers.is_empty());
}

proptest! {
    #[test]
    fn no_document_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), text in ".{0,200}") {
        for bytes in [&bytes[..], text.as_bytes()] {
            drop(Index::parse(bytes).map(|i| i.choose("amd64").is_ok()));
            drop(Manifest::parse(bytes).map(|m| m.checked().is_ok()));
            drop(ImageConfig::parse(bytes));
            drop(DockerArchiveImage::parse_list(bytes));
        }
        assert!(signal_number(&text).is_none_or(|number| number <= 64));
    }
}
