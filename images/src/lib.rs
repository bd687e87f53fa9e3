//! Images, of two kinds: what containers are made of, and what boards boot from.
//!
//! ```text
//! oci      image configuration and manifests: parsing and checking      (OCI image-spec)
//! archive  reading `docker save` archives and OCI layouts
//! store    content-addressed blobs on disk, verified while written
//! unpack   a layer's tar stream into a directory, without escapes
//! disk     GPT disk images for boards, without root or loop devices
//! ```
pub mod archive;
pub mod disk;
pub mod oci;
pub mod store;
#[cfg(target_os = "linux")]
pub mod unpack;
