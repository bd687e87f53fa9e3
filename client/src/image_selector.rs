//! Images as people name them once they have them: by name, by id, by both.
use crate::error::ClientError;
use crate::image::Image;
use crate::location::Location;
use std::fmt;
use std::str::FromStr;
use wherry_protocol::Digest;
use wherry_protocol::message::{ImageInfo, ImageName};

/// Shortest beginning of an id that is taken for one.
const MIN_PREFIX: usize = 4;

/// Which image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSelector {
    /// By name.
    Name(ImageName),
    /// By the beginning of its id, in hexadecimal digits; by name, if one is called so.
    NameOrId(ImageName, String),
    /// By its whole id.
    Id(Digest),
    /// By name, provided that it still has this id.
    Pinned(ImageName, Digest),
}

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' names no image: expected a name as in web:1.2, the beginning of an id, or both as in web@sha256:…"
)]
pub struct ImageSelectorError(String);

impl FromStr for ImageSelector {
    type Err = ImageSelectorError;
    fn from_str(text: &str) -> Result<Self, ImageSelectorError> {
        let wrong = || ImageSelectorError(text.chars().take(100).collect());
        if let Some((name, id)) = text.split_once('@') {
            return Ok(Self::Pinned(name.parse().map_err(|_| wrong())?, id.parse().map_err(|_| wrong())?));
        }
        if text.starts_with("sha256:")
            && let Ok(id) = text.parse()
        {
            return Ok(Self::Id(id));
        }
        let name = text.parse().map_err(|_| wrong())?;
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let id = text.strip_prefix("sha256:").unwrap_or(text);
        match (MIN_PREFIX..=64).contains(&id.len()) && id.bytes().all(hexadecimal) {
            true => Ok(Self::NameOrId(name, id.to_owned())),
            false => Ok(Self::Name(name)),
        }
    }
}

impl fmt::Display for ImageSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::NameOrId(_, text) => f.write_str(text),
            Self::Id(id) => id.fmt(f),
            Self::Pinned(name, id) => write!(f, "{name}@{id}"),
        }
    }
}

impl ImageSelector {
    /// Those among `images` that are meant.
    fn among<'a>(&self, images: &'a [Image]) -> Vec<&'a Image> {
        let with =
            |fits: &dyn Fn(&ImageInfo) -> bool| images.iter().filter(|image| fits(image.info())).collect();
        match self {
            Self::Name(name) => with(&|info| info.name == *name),
            Self::Id(id) => with(&|info| info.id == *id),
            Self::Pinned(name, id) => with(&|info| info.name == *name && info.id == *id),
            Self::NameOrId(name, prefix) => {
                let named: Vec<&Image> = with(&|info| info.name == *name);
                if named.is_empty() { with(&|info| info.id.hex().starts_with(prefix)) } else { named }
            }
        }
    }
}

impl Location {
    /// The image that is meant. One with several names is given with the first of them.
    ///
    /// # Errors
    /// When there is none, or several different ones.
    pub async fn image(&self, selector: &ImageSelector) -> Result<Image, ClientError> {
        let images = self.images().await?;
        let found = selector.among(&images);
        match found.as_slice() {
            [] => Err(ClientError::NoImage(selector.to_string())),
            [first, rest @ ..] if rest.iter().all(|image| image.info().id == first.info().id) => {
                Ok((*first).clone())
            }
            _ => Err(ClientError::SeveralImages(selector.to_string(), names(&found))),
        }
    }

    /// The name of the image that is meant; nothing is asked if it is a name already.
    ///
    /// # Errors
    /// As [`Self::image`].
    pub async fn image_name(&self, selector: &ImageSelector) -> Result<ImageName, ClientError> {
        match selector {
            ImageSelector::Name(name) => Ok(name.clone()),
            ImageSelector::NameOrId(..) | ImageSelector::Id(_) | ImageSelector::Pinned(..) => {
                Ok(self.image(selector).await?.info().name.clone())
            }
        }
    }

    /// The same where it matters which of several names it is.
    ///
    /// # Errors
    /// As [`Self::image`], and when the image has several names.
    pub async fn only_image_name(&self, selector: &ImageSelector) -> Result<ImageName, ClientError> {
        if let ImageSelector::Name(name) = selector {
            return Ok(name.clone());
        }
        let images = self.images().await?;
        match selector.among(&images).as_slice() {
            [] => Err(ClientError::NoImage(selector.to_string())),
            [only] => Ok(only.info().name.clone()),
            several => Err(ClientError::SeveralImages(selector.to_string(), names(several))),
        }
    }
}

fn names(images: &[&Image]) -> String {
    images.iter().map(|image| image.info().name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_are_told_apart() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let id: Digest = format!("sha256:{hex}").parse().unwrap();
        let name = |text: &str| text.parse::<ImageName>().unwrap();
        let parse = |text: &str| text.parse::<ImageSelector>().unwrap();
        assert_eq!(parse("web"), ImageSelector::Name(name("web")));
        assert_eq!(parse("bee"), ImageSelector::Name(name("bee")));
        assert_eq!(parse("cafe:1"), ImageSelector::Name(name("cafe:1")));
        assert_eq!(parse("cafe"), ImageSelector::NameOrId(name("cafe"), "cafe".into()));
        assert_eq!(parse("sha256:cafe"), ImageSelector::NameOrId(name("sha256:cafe"), "cafe".into()));
        assert_eq!(parse("sha256:ca"), ImageSelector::Name(name("sha256:ca")));
        assert_eq!(parse(hex), ImageSelector::NameOrId(name(hex), hex.into()));
        assert_eq!(parse(&id.to_string()), ImageSelector::Id(id));
        assert_eq!(parse(&format!("web@{id}")), ImageSelector::Pinned(name("web"), id));
        for wrong in ["", "Web", "web@", "web@sha256:12", "@sha256:12", "a b"] {
            assert!(wrong.parse::<ImageSelector>().is_err(), "{wrong}");
        }
    }
}
