//! `image push|ls|inspect|tag|rm`, `images`, `push`, `tag`, `rmi`; `pull` is in its own file.
use crate::context::{CliError, Context, for_each};
use crate::pull::Pull;
use crate::{output, view};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use wherry_client::{
    ClientError, EngineError, EngineImage, ImageSelector, Location, PushProgress, open_archive, read_archive,
    verify_archive,
};
use wherry_images::archive::{ArchiveError, ArchivedImage, ImageArchive, Platforms};
use wherry_protocol::message::{ImageInfo, ImageName};

/// `wherry image`
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Send an image: an archive of `docker save`, an OCI layout as a file or a directory, or docker:NAME, podman:NAME.
    Push(Push),
    /// Get an image from a registry.
    Pull(Pull),
    /// List images.
    #[command(alias = "list")]
    Ls(List),
    /// Everything about images, as JSON.
    Inspect(Inspect),
    /// Give an image one more name.
    Tag(Tag),
    /// Remove images.
    Rm(Remove),
}

/// `wherry image push`
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// The archive, or the layout's directory; - for standard input; docker:NAME or podman:NAME for an image of an
    /// engine of this computer.
    file: PathBuf,
    /// What to call it; as in the archive otherwise.
    name: Option<ImageName>,
    /// For which boards: amd64 or arm64. Needed only if the archive and the cluster have both.
    #[arg(long, value_name = "ARCH", value_parser = Platforms::SUPPORTED)]
    platform: Option<String>,
}

/// `wherry images`
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print only ids.
    #[arg(short, long)]
    quiet: bool,
}

/// `wherry rmi`
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Which: names, or ids.
    #[arg(required = true)]
    names: Vec<ImageSelector>,
}

/// `wherry image inspect`
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Which: names, or ids.
    #[arg(required = true)]
    images: Vec<ImageSelector>,
}

/// `wherry tag`
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// Which image: its name, or its id.
    image: ImageSelector,
    /// Another name for it.
    name: ImageName,
}

/// Dispatches `wherry image …`.
pub(crate) async fn image(context: &Context, command: ImageCommand) -> Result<u8, CliError> {
    match command {
        ImageCommand::Push(args) => push(context, args).await,
        ImageCommand::Pull(args) => crate::pull::pull(context, args).await,
        ImageCommand::Ls(args) => list(context, &args).await,
        ImageCommand::Inspect(args) => inspect(context, &args).await,
        ImageCommand::Tag(args) => tag(context, &args).await,
        ImageCommand::Rm(args) => remove(context, args).await,
    }
}

/// The images there are.
pub(crate) async fn list(context: &Context, args: &List) -> Result<u8, CliError> {
    let images = context.location()?.images().await?;
    let infos: Vec<&ImageInfo> = images.iter().map(|image| image.info()).collect();
    if args.quiet {
        for info in infos {
            output::line(&info.id.short())?;
        }
    } else if context.json {
        output::json(&infos.into_iter().map(view::Image::of).collect::<Vec<_>>())?;
    } else {
        let row = |info: &&ImageInfo| {
            vec![
                info.name.to_string(),
                info.architecture.clone(),
                info.id.short(),
                info.manifest.layers.len().to_string(),
                output::bytes(info.size),
                output::ago(info.created_seconds),
            ]
        };
        let rows: Vec<Vec<String>> = infos.iter().map(row).collect();
        output::table(&["NAME", "ARCH", "ID", "LAYERS", "SIZE", "PUSHED"], &rows)?;
    }
    Ok(0)
}

/// Removes images by name.
pub(crate) async fn remove(context: &Context, args: Remove) -> Result<u8, CliError> {
    let location = context.location()?;
    for_each(&args.names, |selector| {
        let (location, selector) = (location.clone(), selector.clone());
        async move {
            let name = location.only_image_name(&selector).await?;
            location.remove_image(&name).await?;
            match context.json {
                true => output::json_line(&serde_json::json!({ "removed": name })),
                false => output::line(name.as_str()),
            }
        }
    })
    .await
}

async fn inspect(context: &Context, args: &Inspect) -> Result<u8, CliError> {
    let location = context.location()?;
    let mut found = Vec::new();
    for selector in &args.images {
        found.push(location.image(selector).await?.details().await?);
    }
    output::json(&found)?;
    Ok(0)
}

/// One more name for an image.
pub(crate) async fn tag(context: &Context, args: &Tag) -> Result<u8, CliError> {
    let info = context.location()?.image(&args.image).await?.tag(&args.name).await?;
    if context.json {
        output::json_line(&view::Image::of(&info))?;
    } else {
        output::line(info.name.as_str())?;
    }
    Ok(0)
}

/// Sends images.
pub(crate) async fn push(context: &Context, args: Push) -> Result<u8, CliError> {
    let location = context.location()?;
    let platforms = args.platform.clone().map_or(Platforms::All, Platforms::Only);
    let shown = args.file.display().to_string();
    let spoilt = |error: ClientError| match error {
        // Their messages name the file, or the image, already.
        ClientError::Archive(ArchiveError::Open { .. }) | ClientError::Engine(_) => CliError::Client(error),
        error => CliError::Other(format!("cannot push {shown}: {error}")),
    };
    let engine = args.file.to_str().and_then(EngineImage::parse).transpose().map_err(usage)?;
    let (archive, images) = match engine {
        Some(image) => {
            let archive = save(context, &image).await.map_err(spoilt)?;
            verify_archive(archive, platforms).await.map_err(spoilt)?
        }
        None if args.file.as_os_str() == "-" => {
            read_archive(std::io::stdin(), platforms).await.map_err(spoilt)?
        }
        None => open_archive(args.file.clone(), platforms).await.map_err(spoilt)?,
    };
    let images = for_boards(&location, images).await?;
    for (image, name) in choose(images, args.name.as_ref())? {
        let pushed = push_one(context, &location, &archive, &image, &name).await?;
        if context.json {
            output::json_line(&pushed)?;
        } else {
            output::line(&format!("{name} ({}) pushed: {}", image.architecture, pushed.describe()))?;
        }
    }
    Ok(0)
}

/// An image of an engine of this computer, in a file without a name.
async fn save(context: &Context, image: &EngineImage) -> Result<ImageArchive, ClientError> {
    let bar = progress_bar(context, &format!("saving {}", image.name), "{msg} {spinner} {bytes}");
    let archive = image.open(|bytes| bar.inc(bytes)).await;
    bar.finish_and_clear();
    archive
}

fn usage(error: EngineError) -> CliError {
    CliError::Usage(error.to_string())
}

/// One name stands for one architecture. If the archive has several, the boards decide.
async fn for_boards(location: &Location, images: Vec<ArchivedImage>) -> Result<Vec<ArchivedImage>, CliError> {
    let offered = images.iter().map(|image| image.architecture.clone()).collect();
    let chosen = choose_architecture(location, "the archive has images", &offered).await?;
    Ok(images
        .into_iter()
        .filter(|image| chosen.as_ref().is_none_or(|only| image.architecture == *only))
        .collect())
}

/// Which of several architectures the boards have; `None` if there is no choice.
pub(crate) async fn choose_architecture(
    location: &Location,
    whose: &str,
    offered: &BTreeSet<String>,
) -> Result<Option<String>, CliError> {
    if offered.len() <= 1 {
        return Ok(None);
    }
    let nodes = location.nodes().await?;
    let boards: BTreeSet<&str> = nodes
        .iter()
        .filter_map(|node| node.info().facts.as_ref())
        .map(|facts| facts.architecture.as_str())
        .collect();
    let both: Vec<&String> = offered.iter().filter(|name| boards.contains(name.as_str())).collect();
    match both.as_slice() {
        [only] => Ok(Some((*only).clone())),
        _ => {
            let all: Vec<&str> = offered.iter().map(String::as_str).collect();
            Err(CliError::Usage(format!("{whose} for {}: choose one with --platform", all.join(" and "))))
        }
    }
}

/// Which images to push, under which names.
fn choose(
    images: Vec<ArchivedImage>,
    name: Option<&ImageName>,
) -> Result<Vec<(ArchivedImage, ImageName)>, CliError> {
    let unnamed = || CliError::Usage("the archive does not say what the image is called: add a name".into());
    match (images.as_slice(), name) {
        ([only], Some(name)) => Ok(vec![(only.clone(), name.clone())]),
        (several, Some(name)) => {
            let named = several.iter().find(|image| image.names.contains(name)).cloned();
            let names: Vec<&str> =
                several.iter().flat_map(|image| &image.names).map(ImageName::as_str).collect();
            let ambiguous = || {
                let names = names.join(", ");
                CliError::Usage(format!(
                    "the archive holds several images and none is called {name}: {names}"
                ))
            };
            Ok(vec![(named.ok_or_else(ambiguous)?, name.clone())])
        }
        (all, None) => {
            let pairs: Vec<_> = all
                .iter()
                .flat_map(|image| image.names.iter().map(move |name| (image.clone(), name.clone())))
                .collect();
            if pairs.is_empty() { Err(unnamed()) } else { Ok(pairs) }
        }
    }
}

/// What a push did.
#[derive(serde::Serialize)]
pub(crate) struct Pushed {
    #[serde(flatten)]
    image: serde_json::Value,
    sent_bytes: u64,
    sent_blobs: u64,
    blobs: u64,
    seconds: f64,
}

impl Pushed {
    pub(crate) fn describe(&self) -> String {
        match self.sent_blobs {
            0 => "everything was there already".into(),
            sent => format!(
                "{} in {sent} of {} blobs, {:.1} s",
                output::bytes(self.sent_bytes),
                self.blobs,
                self.seconds
            ),
        }
    }
}

async fn push_one(
    context: &Context,
    location: &Location,
    archive: &ImageArchive,
    image: &ArchivedImage,
    name: &ImageName,
) -> Result<Pushed, CliError> {
    let blobs = image.blobs().count() as u64;
    with_progress(context, name, blobs, async |progress| location.push(archive, image, name, progress).await)
        .await
}

/// Shows how far the sending of an image is, and says what it came to.
pub(crate) async fn with_progress(
    context: &Context,
    name: &ImageName,
    of_blobs: u64,
    send: impl AsyncFnOnce(&(dyn Fn(PushProgress) + Send + Sync)) -> Result<ImageInfo, ClientError>,
) -> Result<Pushed, CliError> {
    let template = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let bar = progress_bar(context, name.as_str(), template);
    let (bytes, blobs) = (AtomicU64::new(0), AtomicU64::new(0));
    let progress = |step| match step {
        PushProgress::Missing { bytes, .. } => bar.set_length(bar.position() + bytes),
        PushProgress::Sent { bytes: more, .. } => {
            bytes.fetch_add(more, Ordering::Relaxed);
            bar.inc(more);
        }
        PushProgress::Stored { .. } => {
            blobs.fetch_add(1, Ordering::Relaxed);
        }
        PushProgress::Retrying { attempt: 2 } => {
            bar.suspend(|| eprintln!("wherry: lost the connection, waiting for the broker to go on"));
        }
        PushProgress::Retrying { .. } => {}
    };
    let started = std::time::Instant::now();
    let result = send(&progress).await;
    bar.finish_and_clear();
    let info = result?;
    Ok(Pushed {
        image: serde_json::to_value(view::Image::of(&info))
            .map_err(|error| CliError::Other(error.to_string()))?,
        sent_bytes: bytes.into_inner(),
        sent_blobs: blobs.into_inner(),
        blobs: of_blobs,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn progress_bar(context: &Context, message: &str, template: &str) -> ProgressBar {
    if context.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style).with_message(message.to_owned())
}
