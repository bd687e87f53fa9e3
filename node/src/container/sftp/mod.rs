//! An SFTP server inside of a running container, whose image needs none: in the container's namespaces, with its root
//! directory, behind its filter, as the user that was asked for. One thread, one request after the other
//! (`docs/decisions/0014`).
mod files;
mod listing;
mod wire;

use files::Files;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use wire::{MAX_PACKET, Malformed, Reply, Status};

const FAILED: u8 = 1;

/// Serves standard input and output to the end of the input; the exit code. What goes wrong is said on standard error.
pub(super) fn run(home: PathBuf) -> u8 {
    // Nothing but the three streams is its business; what else is open could be found below /proc/self/fd.
    let closed = wherry_sys::child::close_from(3).map_err(|error| io::Error::from(error.errno()));
    match closed.and_then(|()| serve(stream(io::stdin())?, stream(io::stdout())?, home)) {
        Ok(()) => 0,
        Err(error) => {
            // Whoever asked may have gone.
            writeln!(io::stderr(), "sftp: {error}").ok();
            FAILED
        }
    }
}

/// Without the standard library's own buffers.
fn stream(stream: impl AsFd) -> io::Result<File> {
    stream.as_fd().try_clone_to_owned().map(File::from)
}

fn serve(input: impl Read, output: impl Write, home: PathBuf) -> io::Result<()> {
    let mut input = BufReader::new(input);
    let mut output = BufWriter::with_capacity(MAX_PACKET, output);
    let mut packet = Vec::new();
    if !receive(&mut input, &mut packet)? {
        return Ok(());
    }
    wire::init(&packet).map_err(|Malformed| invalid("the first packet is not SSH_FXP_INIT"))?;
    output.write_all(&wire::version())?;
    let mut files = Files::new(home);
    loop {
        // Several answers go together, but nobody waits for one while we wait for a request.
        if input.buffer().is_empty() {
            output.flush()?;
        }
        if !receive(&mut input, &mut packet)? {
            return output.flush();
        }
        let (id, request) =
            wire::request(&packet).map_err(|Malformed| invalid("a packet without a number"))?;
        let reply = match request {
            Ok(request) => files.answer(request),
            Err(Malformed) => Reply::Status(Status::BadMessage, "the request is malformed".into()),
        };
        output.write_all(&wire::reply(id, &reply))?;
    }
}

/// The next packet; false at the end.
fn receive(input: &mut BufReader<impl Read>, packet: &mut Vec<u8>) -> io::Result<bool> {
    let mut length = [0; 4];
    if input.by_ref().take(1).read(&mut length[..1])? == 0 {
        return Ok(false);
    }
    input.read_exact(&mut length[1..])?;
    let length = u32::from_be_bytes(length);
    match usize::try_from(length) {
        Ok(1..=MAX_PACKET) => {}
        _ => return Err(invalid(&format!("a packet of {length} bytes: 1 to {MAX_PACKET} can be had"))),
    }
    packet.clear();
    if input.by_ref().take(length.into()).read_to_end(packet)? as u64 != u64::from(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(true)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(input: &[u8]) -> (io::Result<()>, Vec<u8>) {
        let mut output = Vec::new();
        let result = serve(input, &mut output, "/".into());
        (result, output)
    }

    const INIT: [u8; 9] = [0, 0, 0, 5, 1, 0, 0, 0, 3];

    #[test]
    fn it_begins_with_versions_and_ends_in_order() {
        assert!(served(&[]).0.is_ok());
        let (result, output) = served(&INIT);
        assert!(result.is_ok());
        assert_eq!(output, wire::version());
        for other in [&[0, 0, 0, 5, 2, 0, 0, 0, 3][..], &[0, 0, 0, 1, 1], &[0, 0, 0, 5, 16, 0, 0, 0, 1]] {
            let error = served(other).0.unwrap_err().to_string();
            assert!(error.contains("SSH_FXP_INIT"), "{error}");
        }
    }

    #[test]
    fn garbage_is_answered_or_ends_it() {
        let after = |more: &[u8]| served(&[&INIT[..], more].concat());
        // Announced lengths that nobody has room for.
        for length in [[0, 0, 0, 0], [0xff; 4], [0, 4, 0, 1]] {
            let error = after(&length).0.unwrap_err().to_string();
            assert!(error.contains("can be had"), "{error}");
        }
        for cut in [&[0][..], &[0, 0, 0, 9], &[0, 0, 0, 9, 17, 0, 0]] {
            assert_eq!(after(cut).0.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{cut:?}");
        }
        assert!(after(&[0, 0, 0, 2, 17, 0]).0.is_err(), "no number");
        // A request that makes no sense is refused, and the next one served.
        let (result, output) = after(&[0, 0, 0, 5, 17, 0, 0, 0, 7, 0, 0, 0, 5, 99, 0, 0, 0, 8]);
        assert!(result.is_ok());
        let malformed = Reply::Status(Status::BadMessage, "the request is malformed".into());
        let unknown = Reply::Status(Status::Unsupported, "not known here".into());
        let expected = [wire::version(), wire::reply(7, &malformed), wire::reply(8, &unknown)].concat();
        assert_eq!(output, expected);
    }
}
