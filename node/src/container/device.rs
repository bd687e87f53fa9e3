//! Devices of the board that a container is given.
use super::plan::Device;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use wherry_protocol::message::Setting;
use wherry_protocol::{ErrorCode, WireError, policy};

/// Looks the devices up that `settings` name.
///
/// # Errors
/// One sentence when a device is not there, is no character device, or is a link to one that may not be given away.
pub(super) fn devices(settings: &[Setting]) -> Result<Vec<Device>, WireError> {
    let wanted = settings.iter().filter_map(|setting| match setting {
        Setting::Device { device, path } => Some((device, path)),
        _ => None,
    });
    wanted.map(|(device, path)| find(device, path)).collect()
}

fn find(device: &str, path: &str) -> Result<Device, WireError> {
    let refuse = |why: &str| WireError::new(ErrorCode::Invalid, format!("the device '{device}' {why}"));
    let absent =
        |_| refuse("is not on this board: connect it, or choose another board with --constraint or --node");
    let real = fs::canonicalize(Path::new(device)).map_err(absent)?;
    // udev's names are links; where they lead counts.
    if !real.to_str().is_some_and(policy::is_device_granted) {
        return Err(refuse(&format!("leads to {}, which cannot be had", real.display())));
    }
    let meta = fs::symlink_metadata(&real).map_err(absent)?;
    if !meta.file_type().is_char_device() {
        return Err(refuse("is no character device"));
    }
    let number = meta.rdev();
    Ok(Device { path: path.to_owned(), major: rustix::fs::major(number), minor: rustix::fs::minor(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_told() {
        let wish = Setting::Device { device: "/dev/ttyUSB99".into(), path: "/dev/ttyUSB99".into() };
        let error = devices(&[Setting::Init, wish]).unwrap_err();
        assert!(error.message.starts_with("the device '/dev/ttyUSB99' is not on this board"), "{error}");
        // The node checks again what the broker has let through.
        let error = find("/dev/null", "/dev/x").unwrap_err();
        assert!(error.message.contains("cannot be had"), "{error}");
    }
}
