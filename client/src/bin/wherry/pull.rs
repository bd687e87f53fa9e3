//! `pull`: an image from a registry to the broker, through this computer but not onto it.
use crate::context::{CliError, Context};
use crate::images::{choose_architecture, with_progress};
use crate::output;
use clap::Args;
use std::path::PathBuf;
use wherry_client::ClientError;
use wherry_client::registry::{CredentialFiles, Reference, RegistryOptions, Remote};
use wherry_images::archive::Platforms;
use wherry_protocol::message::ImageName;

/// `wherry pull`
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Which: nginx:1.27, ghcr.io/ada/web, registry.lan:5000/web@sha256:…
    reference: Reference,
    /// What to call it; what follows the registry's host otherwise.
    name: Option<ImageName>,
    /// For which boards: amd64 or arm64. Needed only if the image and the cluster have both.
    #[arg(long, value_name = "ARCH", value_parser = Platforms::SUPPORTED)]
    platform: Option<String>,
    /// Trust these authorities too: a file of PEM certificates.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// What a pull did.
#[derive(serde::Serialize)]
struct Pulled {
    #[serde(flatten)]
    pushed: crate::images::Pushed,
    reference: String,
    digest: String,
}

/// Dispatches `wherry pull`.
pub(crate) async fn pull(context: &Context, args: Pull) -> Result<u8, CliError> {
    let location = context.location()?;
    let name = args.name.clone().or_else(|| args.reference.name()).ok_or_else(|| {
        CliError::Usage(format!("'{}' has no tag to name the image by: add a name", args.reference))
    })?;
    let options = RegistryOptions {
        ca: args.ca.clone(),
        credentials: CredentialFiles::from_env(|name| std::env::var_os(name)),
    };
    let remote = Remote::open(&args.reference, &options).await.map_err(ClientError::Registry)?;
    let wanted = match args.platform.clone() {
        Some(platform) => Some(platform),
        None => choose_architecture(&location, "the image is there", &remote.architectures()).await?,
    };
    let image = remote.image(wanted.as_deref()).await.map_err(ClientError::Registry)?;
    let blobs = wherry_images::oci::blobs(&image.manifest).count() as u64;
    let pushed =
        with_progress(context, &name, blobs, async |progress| location.pull(&image, &name, progress).await);
    let (pushed, pinned) = (pushed.await?, image.pinned().to_string());
    if context.json {
        let digest = image.digest.to_string();
        output::json_line(&Pulled { pushed, reference: pinned, digest })?;
    } else {
        output::line(&format!("{name} ({}) pulled: {}", image.architecture, pushed.describe()))?;
        output::line(&pinned)?;
    }
    Ok(0)
}
