//! Images and blobs. Blobs are shared on disk, but an account sees only those that it has sent itself: whether another
//! account has the same layer is never shown, so the bytes always travel once per account.
use super::bounds::{MAX_BLOBS_PER_ACCOUNT, MAX_IMAGES_PER_ACCOUNT, MAX_QUESTION_DIGESTS, UNNAMED_BLOB_MS};
use super::{Broker, Output, RequestId, SessionId, Timer, error, not_found};
use crate::record::{Hold, Image, blobs, digests};
use std::collections::BTreeSet;
use wherry_protocol::limits::{MAX_BLOB_BYTES, MAX_LAYERS, MAX_READ_BLOB_BYTES};
use wherry_protocol::message::{Descriptor, ImageInfo, ImageManifest, ImageName, Media, Reply};
use wherry_protocol::{AccountId, Digest, ErrorCode, WireError};

impl Broker {
    pub(super) fn missing_blobs(&self, account: AccountId, asked: Vec<Digest>) -> Result<Reply, WireError> {
        if asked.len() > MAX_QUESTION_DIGESTS {
            let text =
                format!("asked for {} blobs at once, the limit is {MAX_QUESTION_DIGESTS}", asked.len());
            return Err(error(ErrorCode::TooLarge, text));
        }
        let missing = asked.into_iter().filter(|digest| !self.tables.holds.contains(&(account, *digest)));
        Ok(Reply::Missing(missing.collect()))
    }

    pub(super) fn put_blob(
        &mut self,
        request: RequestId,
        account: AccountId,
        blob: &Descriptor,
    ) -> Result<Reply, WireError> {
        if blob.size > MAX_BLOB_BYTES {
            let text = format!("{} has {} bytes, the limit is {MAX_BLOB_BYTES}", blob.digest, blob.size);
            return Err(error(ErrorCode::TooLarge, text));
        }
        if let Some(hold) = self.tables.holds.get(&(account, blob.digest)) {
            return Ok(Reply::Blob { size: hold.size });
        }
        let held =
            self.tables.holds.range((account, Digest([0; 32]))..=(account, Digest([0xff; 32]))).count();
        if held >= MAX_BLOBS_PER_ACCOUNT {
            let text =
                format!("this account has {MAX_BLOBS_PER_ACCOUNT} blobs, the limit: remove images first");
            return Err(error(ErrorCode::NoCapacity, text));
        }
        self.uploads.insert(request, (account, blob.digest));
        Ok(Reply::Done)
    }

    /// Whether an account may read a blob, and how large it is. One of another account is not there.
    pub(super) fn read_blob(&self, account: AccountId, digest: Digest) -> Result<Reply, WireError> {
        match self.tables.holds.get(&(account, digest)) {
            None => Err(error(ErrorCode::NotFound, format!("this account has no blob {digest}"))),
            Some(hold) if hold.size > MAX_READ_BLOB_BYTES => {
                let text = format!(
                    "{digest} has {} bytes, at most {MAX_READ_BLOB_BYTES} can be read back",
                    hold.size
                );
                Err(error(ErrorCode::TooLarge, text))
            }
            Some(hold) => Ok(Reply::Blob { size: hold.size }),
        }
    }

    pub(super) fn stored(&mut self, request: RequestId, session: SessionId, blob: &Descriptor) {
        let result = self.take_upload(request, session, blob);
        if result.is_err() {
            self.delete_unheld(blob.digest);
        }
        self.reply_result(request, result);
    }

    fn take_upload(
        &mut self,
        request: RequestId,
        session: SessionId,
        blob: &Descriptor,
    ) -> Result<Reply, WireError> {
        let begun = self.uploads.remove(&request);
        let account = self.session_of(session)?.account;
        if begun != Some((account, blob.digest)) {
            return Err(error(ErrorCode::Invalid, format!("nobody asked to send {}", blob.digest)));
        }
        self.tables.holds.insert((account, blob.digest), Hold { size: blob.size });
        self.watch_unnamed(account, blob.digest);
        Ok(Reply::Done)
    }

    pub(super) fn abandon_upload(&mut self, request: RequestId) {
        if let Some((_, digest)) = self.uploads.remove(&request) {
            self.delete_unheld(digest);
        }
    }

    /// Forgets a blob that no image names if that stays so.
    fn watch_unnamed(&mut self, account: AccountId, digest: Digest) {
        let at = self.after(UNNAMED_BLOB_MS);
        self.unnamed.insert((account, digest), at);
        self.set_timer(at, Timer::Unnamed(account, digest));
    }

    pub(super) fn schedule_unnamed_blobs(&mut self) {
        let named: BTreeSet<(AccountId, Digest)> = self
            .tables
            .images
            .iter()
            .flat_map(|((account, _), image)| digests(&image.manifest).map(|digest| (*account, digest)))
            .collect();
        let holds: Vec<_> = self.tables.holds.iter().map(|(key, _)| *key).collect();
        for (account, digest) in holds.into_iter().filter(|key| !named.contains(key)) {
            self.watch_unnamed(account, digest);
        }
    }

    pub(super) fn unnamed_due(&mut self, account: AccountId, digest: Digest, at: u64) {
        if self.unnamed.get(&(account, digest)) == Some(&at) {
            self.unnamed.remove(&(account, digest));
            self.release(account, [digest]);
        }
    }

    pub(super) fn put_image(
        &mut self,
        account: AccountId,
        name: ImageName,
        architecture: String,
        manifest: ImageManifest,
    ) -> Result<Reply, WireError> {
        check_manifest(&name, &architecture, &manifest)?;
        for blob in blobs(&manifest) {
            self.check_held(account, blob)?;
        }
        let key = (account, name.clone());
        if !self.tables.images.contains(&key) && self.images_of(account).count() >= MAX_IMAGES_PER_ACCOUNT {
            let text =
                format!("this account has {MAX_IMAGES_PER_ACCOUNT} images, the limit: remove some first");
            return Err(error(ErrorCode::NoCapacity, text));
        }
        let old = self.tables.images.get(&key).map(|image| image.manifest.clone());
        for digest in digests(&manifest) {
            self.unnamed.remove(&(account, digest));
        }
        let image = Image { architecture, manifest, created_seconds: self.now_seconds() };
        let info = image_info(&name, &image);
        self.tables.images.insert(key, image);
        if let Some(old) = old {
            self.release(account, digests(&old));
        }
        Ok(Reply::Image(info))
    }

    pub(super) fn check_held(&self, account: AccountId, blob: &Descriptor) -> Result<(), WireError> {
        match self.tables.holds.get(&(account, blob.digest)) {
            Some(hold) if hold.size == blob.size => Ok(()),
            Some(hold) => {
                let text = format!("{} has {} bytes, the image says {}", blob.digest, hold.size, blob.size);
                Err(error(ErrorCode::BadImage, text))
            }
            None => Err(error(
                ErrorCode::NotFound,
                format!("{} has not been sent yet: send it first", blob.digest),
            )),
        }
    }

    fn images_of(&self, account: AccountId) -> impl Iterator<Item = (&ImageName, &Image)> {
        // Names are sorted within an account, and accounts are sorted: take while the account is the same.
        self.tables
            .images
            .iter()
            .filter(move |((owner, _), _)| *owner == account)
            .map(|((_, name), image)| (name, image))
    }

    pub(super) fn images(&self, account: AccountId) -> Reply {
        Reply::Images(self.images_of(account).map(|(name, image)| image_info(name, image)).collect())
    }

    pub(super) fn remove_image(&mut self, account: AccountId, name: &ImageName) -> Result<Reply, WireError> {
        let key = (account, name.clone());
        let image = self.image(account, name)?;
        let user = self.tables.containers().find(|(_, c)| {
            c.account == account && c.is_present() && c.image == *name && c.manifest == image.manifest
        });
        if let Some((id, container)) = user {
            let text =
                format!("image '{name}' is used by container '{}' ({id}): remove that first", container.name);
            return Err(error(ErrorCode::InUse, text));
        }
        if let Some(image) = self.tables.images.remove(&key) {
            self.release(account, digests(&image.manifest));
        }
        Ok(Reply::Done)
    }

    pub(super) fn image(&self, account: AccountId, name: &ImageName) -> Result<&Image, WireError> {
        self.tables.images.get(&(account, name.clone())).ok_or_else(|| {
            not_found("image", name, "push it with `wherry image push`, or list them with `wherry images`")
        })
    }

    /// Lets go of those blobs that nothing of this account needs any more.
    pub(super) fn release(&mut self, account: AccountId, candidates: impl IntoIterator<Item = Digest>) {
        let candidates: BTreeSet<Digest> = candidates.into_iter().collect();
        let needed: BTreeSet<Digest> = self
            .images_of(account)
            .flat_map(|(_, image)| digests(&image.manifest))
            .chain(
                self.tables
                    .containers()
                    .filter(|(_, c)| c.account == account && c.is_present())
                    .flat_map(|(_, c)| c.digests()),
            )
            .filter(|digest| candidates.contains(digest))
            .collect();
        for digest in candidates.difference(&needed) {
            // One that was sent a moment ago and has no name yet has its own clock.
            if !self.unnamed.contains_key(&(account, *digest)) {
                self.drop_hold(account, *digest);
            }
        }
    }

    fn drop_hold(&mut self, account: AccountId, digest: Digest) {
        self.unnamed.remove(&(account, digest));
        if self.tables.holds.remove(&(account, digest)).is_some() {
            self.delete_unheld(digest);
        }
    }

    fn delete_unheld(&mut self, digest: Digest) {
        let held = self.tables.holds.iter().any(|((_, held), _)| *held == digest);
        let coming = self.uploads.values().any(|(_, coming)| *coming == digest);
        if !held && !coming {
            self.out.push(Output::DeleteBlob(digest));
        }
    }

    /// Everything of a removed account.
    pub(super) fn forget_images(&mut self, account: AccountId) {
        let names: Vec<ImageName> = self.images_of(account).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.tables.images.remove(&(account, name));
        }
        let range = (account, Digest([0; 32]))..=(account, Digest([0xff; 32]));
        let held: Vec<Digest> = self.tables.holds.range(range).map(|((_, digest), _)| *digest).collect();
        for digest in held {
            self.drop_hold(account, digest);
        }
    }

    /// A blob is not on disk any more, whyever: whoever has it may send it again.
    pub(super) fn lost(&mut self, digest: Digest) {
        let holders: Vec<AccountId> = self
            .tables
            .holds
            .iter()
            .filter(|((_, held), _)| *held == digest)
            .map(|((account, _), _)| *account)
            .collect();
        for account in holders {
            self.tables.holds.remove(&(account, digest));
            self.unnamed.remove(&(account, digest));
        }
    }

    /// A board may have the blobs of the containers placed on it, and no others.
    pub(super) fn may_fetch(&self, session: SessionId, digest: Digest) -> Result<u64, WireError> {
        let index = self.board_of(session)?;
        self.tables
            .containers_on(index)
            .filter(|(_, c)| c.is_present())
            .flat_map(|(_, c)| c.blobs())
            .find(|blob| blob.digest == digest)
            .map(|blob| blob.size)
            .ok_or_else(|| error(ErrorCode::NotFound, format!("no container of {index} needs {digest}")))
    }
}

fn check_manifest(name: &ImageName, architecture: &str, manifest: &ImageManifest) -> Result<(), WireError> {
    let bad = |reason: String| Err(error(ErrorCode::BadImage, format!("image '{name}': {reason}")));
    if !["amd64", "arm64"].contains(&architecture) {
        let shown: String = architecture.chars().take(40).collect();
        return bad(format!("architecture '{shown}' is not supported, use amd64 or arm64"));
    }
    if manifest.config.media != Media::Config {
        return bad("its configuration is not one".into());
    }
    if manifest.layers.iter().any(|layer| layer.media == Media::Config) {
        return bad("one of its layers is a configuration".into());
    }
    if manifest.layers.is_empty() || manifest.layers.len() > MAX_LAYERS {
        return bad(format!("it has {} layers, expected 1 to {MAX_LAYERS}", manifest.layers.len()));
    }
    Ok(())
}

fn image_info(name: &ImageName, image: &Image) -> ImageInfo {
    ImageInfo {
        name: name.clone(),
        id: image.manifest.config.digest,
        architecture: image.architecture.clone(),
        size: blobs(&image.manifest).fold(0, |sum, blob| sum.saturating_add(blob.size)),
        created_seconds: image.created_seconds,
        manifest: image.manifest.clone(),
    }
}
