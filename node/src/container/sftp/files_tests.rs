use super::super::wire::{Handle, NamedFile};
use super::*;
use std::os::unix::fs::symlink;

const WRITE: OpenFlags = OpenFlags(OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE);
const READ: OpenFlags = OpenFlags(OpenFlags::READ);

fn ground() -> (tempfile::TempDir, Files) {
    (tempfile::tempdir().unwrap(), Files::new("/".into()))
}

fn opened(files: &mut Files, path: &Path, flags: OpenFlags) -> Handle {
    match files.answer(Request::Open { path, flags, attributes: Attributes::default() }) {
        Reply::Handle(handle) => handle,
        other => panic!("{}: {other:?}", path.display()),
    }
}

fn status(reply: &Reply) -> Status {
    match reply {
        Reply::Status(status, _) => *status,
        other => panic!("{other:?}"),
    }
}

fn names(reply: Reply) -> Vec<NamedFile> {
    match reply {
        Reply::Names(names) => names,
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_are_written_and_read_anywhere() {
    let (base, mut files) = ground();
    let path = &*base.path().join("file");
    let handle = opened(&mut files, path, WRITE);
    for (offset, data) in [(5, &b"world"[..]), (0, b"hello")] {
        assert_eq!(files.answer(Request::Write { handle, offset, data }), Reply::ok());
    }
    assert_eq!(files.answer(Request::Sync(handle)), Reply::ok());
    let half = Attributes { size: Some(8), mode: Some(0o4711), times: Some((1, 2)), owner: None };
    assert_eq!(files.answer(Request::FileSetStat(handle, half)), Reply::ok());
    assert_eq!(files.answer(Request::Close(handle)), Reply::ok());
    assert_eq!(status(&files.answer(Request::Close(handle))), Status::Failure);
    let Reply::Attributes(found) = files.answer(Request::Stat(path)) else { panic!("no attributes") };
    assert_eq!((found.size, found.mode, found.times), (Some(8), Some(0o104_711), Some((1, 2))));

    let handle = opened(&mut files, path, READ);
    let mut read = |offset, length| files.answer(Request::Read { handle, offset, length });
    assert_eq!(read(3, 100), Reply::Data(b"lowor".to_vec()));
    assert_eq!(read(3, 2), Reply::Data(b"lo".to_vec()));
    assert_eq!(status(&read(8, 1)), Status::Eof);
    assert_eq!(status(&read(u64::MAX, 1)), Status::Failure);
    assert_eq!(status(&files.answer(Request::Write { handle, offset: 0, data: b"x" })), Status::Failure);

    let handle = opened(&mut files, path, OpenFlags(OpenFlags::WRITE | OpenFlags::APPEND));
    assert_eq!(files.answer(Request::Write { handle, offset: 0, data: b"!" }), Reply::ok());
    assert_eq!(fs::read(path).unwrap(), b"hellowor!");
    let exclusive = OpenFlags(WRITE.0 | OpenFlags::EXCLUSIVE);
    let again = Request::Open { path, flags: exclusive, attributes: Attributes::default() };
    assert_eq!(status(&files.answer(again)), Status::Failure);
}

#[test]
fn directories_are_listed_in_pieces() {
    let (base, mut files) = ground();
    let path = &*base.path().join("many");
    assert_eq!(files.answer(Request::MakeDirectory(path, Attributes::default())), Reply::ok());
    for number in 0..250 {
        fs::write(path.join(format!("{number:0>200}")), "").unwrap();
    }
    let Reply::Handle(handle) = files.answer(Request::OpenDirectory(path)) else { panic!("no handle") };
    let mut found = Vec::new();
    loop {
        match files.answer(Request::ReadDirectory(handle)) {
            Reply::Names(names) => {
                assert!(names.len() <= MAX_NAMES);
                assert!(super::super::wire::reply(0, &Reply::Names(Vec::new())).len() < MAX_PACKET);
                found.extend(names);
            }
            end => {
                assert_eq!(status(&end), Status::Eof);
                break;
            }
        }
    }
    assert_eq!(found.len(), 252);
    let file = found.iter().find(|file| file.name != b"." && file.name != b"..").unwrap();
    assert!(String::from_utf8_lossy(&file.long).starts_with("-rw"), "as ls -l");
    assert_eq!(status(&files.answer(Request::Read { handle, offset: 0, length: 1 })), Status::Failure);
    assert_eq!(status(&files.answer(Request::RemoveDirectory(path))), Status::Failure);
    assert_eq!(status(&files.answer(Request::OpenDirectory(&path.join("none")))), Status::NoSuchFile);
}

#[test]
fn names_change_and_go() {
    let (base, mut files) = ground();
    let at = |name: &str| base.path().join(name);
    fs::write(at("a"), "a").unwrap();
    fs::write(at("b"), "b").unwrap();
    let (a, b, c) = (&*at("a"), &*at("b"), &*at("c"));
    assert_eq!(
        status(&files.answer(Request::Rename { from: a, to: b })),
        Status::Failure,
        "nothing is replaced"
    );
    assert_eq!(fs::read(b).unwrap(), b"b");
    assert_eq!(files.answer(Request::Rename { from: a, to: c }), Reply::ok());
    assert_eq!(files.answer(Request::RenameOver { from: c, to: b }), Reply::ok());
    assert_eq!(fs::read(b).unwrap(), b"a");
    assert_eq!(files.answer(Request::HardLink { from: b, to: c }), Reply::ok());
    assert_eq!(files.answer(Request::MakeLink { target: Path::new("/etc/passwd"), link: a }), Reply::ok());
    assert_eq!(names(files.answer(Request::ReadLink(a)))[0].name, b"/etc/passwd");
    let Reply::Attributes(link) = files.answer(Request::LinkStat(a)) else { panic!("no attributes") };
    assert_eq!(link.mode.unwrap() & 0o170_000, 0o120_000);
    let times = Attributes { times: Some((7, 8)), ..Attributes::default() };
    assert_eq!(files.answer(Request::LinkSetStat(a, times)), Reply::ok());
    assert_eq!(listing::attributes(&fs::symlink_metadata(a).unwrap()).times, Some((7, 8)));
    for path in [a, b, c] {
        assert_eq!(files.answer(Request::Remove(path)), Reply::ok());
    }
    assert_eq!(status(&files.answer(Request::Remove(a))), Status::NoSuchFile);
}

#[test]
fn paths_become_whole() {
    let (base, mut files) = ground();
    let real = fs::canonicalize(base.path()).unwrap();
    symlink(&real, real.join("link")).unwrap();
    let mut whole = |path: &Path| names(files.answer(Request::RealPath(path)))[0].name.clone();
    assert_eq!(
        whole(&real.join("link/../new")),
        real.parent().unwrap().join("new").as_os_str().as_encoded_bytes()
    );
    assert_eq!(whole(&real.join("link/new")), real.join("new").as_os_str().as_encoded_bytes());
    assert_eq!(whole(Path::new("/../../..")), b"/");
    let here = std::env::current_dir().unwrap();
    assert_eq!(whole(Path::new(".")), here.as_os_str().as_encoded_bytes());
    assert_eq!(status(&files.answer(Request::RealPath(&real.join("no/such")))), Status::NoSuchFile);
    let mut files = Files::new(real.clone());
    let expanded = |files: &mut Files, path: &str| files.answer(Request::Expand(Path::new(path)));
    assert_eq!(names(expanded(&mut files, "~/x"))[0].name, real.join("x").as_os_str().as_encoded_bytes());
    assert_eq!(status(&expanded(&mut files, "~root/x")), Status::Failure);
}

#[test]
fn a_client_that_takes_all_handles_is_refused() {
    let (base, mut files) = ground();
    fs::write(base.path().join("file"), "").unwrap();
    let path = &*base.path().join("file");
    let first = opened(&mut files, path, READ);
    for _ in 1..MAX_HANDLES {
        opened(&mut files, path, READ);
    }
    for _ in 0..3 {
        let more = Request::Open { path, flags: READ, attributes: Attributes::default() };
        assert_eq!(status(&files.answer(more)), Status::Failure);
        assert_eq!(status(&files.answer(Request::OpenDirectory(base.path()))), Status::Failure);
    }
    assert_eq!(files.answer(Request::Close(first)), Reply::ok());
    assert_ne!(opened(&mut files, path, READ), first, "an old handle means nothing new");
}

#[test]
fn what_is_no_file_does_not_hold_it_up() {
    let (base, mut files) = ground();
    let path = &*base.path().join("pipe");
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let handle = opened(&mut files, path, READ);
    assert_eq!(status(&files.answer(Request::Read { handle, offset: 0, length: 1 })), Status::Failure);
    let nobody_reads =
        Request::Open { path, flags: OpenFlags(OpenFlags::WRITE), attributes: Attributes::default() };
    files.answer(Request::Close(handle));
    assert_eq!(status(&files.answer(nobody_reads)), Status::Failure);
    let Reply::Numbers(numbers) = files.answer(Request::FileSystem(base.path())) else {
        panic!("no numbers")
    };
    assert_eq!(numbers.len(), 11);
    assert_eq!(files.answer(Request::Limits), limits());
}
