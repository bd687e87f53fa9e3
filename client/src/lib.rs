//! Wherry from a laptop: join a cluster, send images, run containers, reach into them.
//!
//! ```text
//! seed       keys, tokens and configuration of a new cluster
//! flash      disks of boards, with their configuration on them
//! join       a one-time token becomes a stored location
//! store      the stored locations: address, keys, role
//! location   a connected cluster: everything that can be asked of it
//! node, image, container, process, tunnel, web      what it consists of
//! snapshot   an image made of a container
//! upload     single blobs for the broker
//! registry   images in registries                (OCI distribution-spec)
//! engine     images of Docker and podman on this computer
//! http       the little HTTP that is needed for that
//! address    where a broker is
//! ssh        an SSH server in front of a container, for editors, scp, rsync
//! dev        a cluster in virtual machines
//! session    the session underneath, renewed when it breaks
//! ```
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use wherry_client::{Config, Location, selector};
//! let location = Location::connect(&Config::from_env()?, None).await?;
//! for node in location.nodes().await? {
//!     println!("{} runs {} containers", node.info().name, node.info().containers);
//! }
//! let web = location.container(selector("web")?);
//! println!("{:?}", web.inspect().await?.state);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod address;
pub mod container;
pub mod dev;
pub mod engine;
pub mod error;
pub mod flash;
mod http;
pub mod image;
mod image_details;
mod image_selector;
pub mod join;
pub mod location;
pub mod node;
pub mod process;
pub mod registry;
pub mod seed;
mod session;
pub mod snapshot;
pub mod ssh;
pub mod store;
pub mod tunnel;
mod upload;
pub mod web;

pub use address::Address;
pub use container::{Changes, Container, Events, party, selector};
pub use engine::{EngineError, EngineImage};
pub use error::ClientError;
pub use image::{Image, PushProgress, open_archive, read_archive, verify_archive};
pub use image_details::{History, ImageDetails, Layer};
pub use image_selector::{ImageSelector, ImageSelectorError};
pub use join::{JoinOptions, join};
pub use location::{Location, NewToken};
pub use node::Node;
pub use process::{Input, Output, Process};
pub use seed::{BoardNetwork, ClusterSeed, SeedOptions};
pub use snapshot::SnapshotNotes;
pub use store::{Config, StoreError, StoredLocation};
pub use tunnel::{DatagramTunnel, Proxy, Tunnel, TunnelEvent};
pub use web::AccessLog;
