//! An authority that nobody but the tests trusts, and what it has signed.
use super::{program, write};
use crate::failure::Failure;
use std::path::{Path, PathBuf};

/// An authority with a certificate for 127.0.0.1.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
}

impl Authority {
    /// Makes one, with its files in `directory`.
    pub fn new(directory: &Path) -> Result<Self, Failure> {
        let made = Self { directory: directory.to_owned() };
        let (root, root_key) = (text(&made.root()), text(&made.file("root.key")));
        let (certificate, key, request) =
            (text(&made.certificate()), text(&made.key()), text(&made.file("request.pem")));
        let extensions = made.file("extensions");
        write(&extensions, "subjectAltName=IP:127.0.0.1\n")?;
        let new = ["req", "-newkey", "rsa:2048", "-nodes", "-subj"];
        let openssl = |arguments: &[&str]| program("openssl", arguments, None).map(drop);
        openssl(
            &[&new[..], &["/CN=tests", "-x509", "-days", "2", "-keyout", &root_key, "-out", &root]].concat(),
        )?;
        openssl(&[&new[..], &["/CN=127.0.0.1", "-keyout", &key, "-out", &request]].concat())?;
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &root,
            "-CAkey",
            &root_key,
            "-set_serial",
            "2",
            "-days",
            "2",
            "-extfile",
            &text(&extensions),
            "-out",
            &certificate,
        ])?;
        Ok(made)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Its own certificate: whom to trust.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.file("root.pem")
    }

    /// The certificate for 127.0.0.1.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.file("server.pem")
    }

    /// Its secret key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.file("server.key")
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
