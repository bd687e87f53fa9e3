use super::*;
use std::os::unix::fs::PermissionsExt as _;

fn basic(user: &str, password: &str) -> Credentials {
    Credentials::Basic { user: user.into(), password: Secret::new(password.into()) }
}

fn files(directory: &Path, text: &str) -> CredentialFiles {
    let file = directory.join("config.json");
    std::fs::write(&file, text).unwrap();
    CredentialFiles { files: vec![file], named: false }
}

async fn found(text: &str, host: &str, path: &str) -> Credentials {
    let directory = tempfile::tempdir().unwrap();
    files(directory.path(), text).find(host, path).await.unwrap()
}

#[tokio::test]
async fn a_login_is_for_its_host_and_port_only() {
    // ada:one, ada:two
    let text = r#"{"auths": {"registry.lan:5000": {"auth": "YWRhOm9uZQ=="}, "https://index.docker.io/v1/": {"auth": "YWRhOnR3bw"}}}"#;
    assert_eq!(found(text, "registry.lan:5000", "web").await, basic("ada", "one"));
    assert_eq!(found(text, "docker.io", "library/web").await, basic("ada", "two"));
    for other in ["registry.lan", "registry.lan:5001", "lan:5000", "evil.registry.lan:5000", "ghcr.io"] {
        assert_eq!(found(text, other, "web").await, Credentials::Anonymous, "{other}");
    }
}

#[tokio::test]
async fn the_longest_part_of_the_repository_decides() {
    let text = r#"{"auths": {"ghcr.io": {"auth": "YTox"}, "ghcr.io/ada": {"auth": "Yjoy"}, "ghcr.io/ada/web": {"auth": "Yzoz"}}}"#;
    assert_eq!(found(text, "ghcr.io", "other/web").await, basic("a", "1"));
    assert_eq!(found(text, "ghcr.io", "ada/tool").await, basic("b", "2"));
    assert_eq!(found(text, "ghcr.io", "ada/web").await, basic("c", "3"));
    assert_eq!(found(text, "ghcr.io", "ada/webx").await, basic("b", "2"));
}

#[tokio::test]
async fn all_kinds_of_entries_are_understood() {
    for (entry, expected) in [
        (r#"{"username": "ada", "password": "one"}"#, basic("ada", "one")),
        (r#"{"auth": "YWRhOm9uZQ==", "identitytoken": "t"}"#, Credentials::Identity(Secret::new("t".into()))),
        (r#"{"registrytoken": "t"}"#, Credentials::Bearer(Secret::new("t".into()))),
        // ada:a:b and NULs behind
        (r#"{"auth": "YWRhOmE6YgAA"}"#, basic("ada", "a:b")),
        ("{}", Credentials::Anonymous),
    ] {
        assert_eq!(
            found(&format!(r#"{{"auths": {{"a.b": {entry}}}}}"#), "a.b", "web").await,
            expected,
            "{entry}"
        );
    }
}

#[tokio::test]
async fn damaged_files_are_told_without_quoting_them() {
    let directory = tempfile::tempdir().unwrap();
    for text in [
        r#"{"auths": {"a.b": {"auth": "c2VjcmV0"}}}"#,
        r#"{"auths": {"a.b": {"auth": "%%secret%%"}}}"#,
        r#"{"auths": {"a.b": "secret"}}"#,
        r#"{"auths": "secret"}"#,
        r#"{"auths": {"a.b": {"username": ["secret"]}}}"#,
        "secret",
    ] {
        let error = files(directory.path(), text).find("a.b", "web").await.unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("secret") && !shown.contains("c2Vj"), "{text}: {shown}");
        assert!(shown.contains("config.json"), "{shown}");
    }
}

#[tokio::test]
async fn a_file_asked_for_by_name_has_to_be_there() {
    let named = CredentialFiles { files: vec!["/nowhere/auth.json".into()], named: true };
    assert!(named.find("a.b", "web").await.unwrap_err().to_string().contains("/nowhere/auth.json"));
    let usual = CredentialFiles { named: false, ..named };
    assert_eq!(usual.find("a.b", "web").await.unwrap(), Credentials::Anonymous);
}

#[test]
fn the_environment_says_where_to_look() {
    let look = |set: &[(&str, &str)]| {
        let set: Vec<(String, String)> = set.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let found = CredentialFiles::from_env(|name| {
            set.iter().find(|(key, _)| key == name).map(|(_, value)| value.into())
        });
        found.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(look(&[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/a")]), ["/a"]);
    assert_eq!(look(&[("HOME", "/h")]), ["/h/.config/containers/auth.json", "/h/.docker/config.json"]);
    assert_eq!(
        look(&[
            ("HOME", "/h"),
            ("DOCKER_CONFIG", "/d"),
            ("XDG_RUNTIME_DIR", "/r"),
            ("XDG_CONFIG_HOME", "/c")
        ]),
        ["/d/config.json", "/r/containers/auth.json", "/c/containers/auth.json", "/h/.docker/config.json"]
    );
    assert!(look(&[]).is_empty());
}

/// A helper is found by PATH; here its name leads straight to a script.
fn helper(directory: &Path, script: &str) -> String {
    let path = directory.join("docker-credential-test");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn helpers_are_asked_as_docker_asks_them() {
    let directory = tempfile::tempdir().unwrap();
    let program = helper(
        directory.path(),
        r#"read server; [ "$1 $server" = "get https://a.b" ] && echo '{"ServerURL":"x","Username":"ada","Secret":"one"}'"#,
    );
    let (success, text) = run(&program, "https://a.b").await.unwrap();
    assert!(success && text.contains("\"one\""), "{}", *text);
    let program = helper(directory.path(), "echo credentials not found in native keychain; exit 1");
    let (success, text) = run(&program, "a.b").await.unwrap();
    assert!(!success && text.trim() == NOT_FOUND);
}

#[tokio::test]
async fn helpers_with_odd_names_are_not_run() {
    let text = r#"{"credsStore": "../../bin/sh", "auths": {}}"#;
    let directory = tempfile::tempdir().unwrap();
    let error = files(directory.path(), text).find("a.b", "web").await.unwrap_err().to_string();
    assert!(error.contains("that is no name of a program"), "{error}");
    let error =
        files(directory.path(), r#"{"credHelpers": {"a.b": "wherry-has-none"}}"#).find("a.b", "web").await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("docker-credential-wherry-has-none") && error.contains("no such file"), "{error}");
}
