//! Which devices of a board a container may be given.
use super::{Refused, refuse, shown};

/// Devices of a board that may be given away: buses, serial lines, cameras, sound, input. Not disks, not memory, nothing
/// that could stop the board or get around its firewall. A star stands for letters and digits.
const DEVICES: [&str; 22] = [
    "/dev/bus/usb/*/*",
    "/dev/cec*",
    "/dev/dri/card*",
    "/dev/dri/renderD*",
    "/dev/gpiochip*",
    "/dev/gpiomem*",
    "/dev/hidraw*",
    "/dev/hwrng",
    "/dev/i2c-*",
    "/dev/iio:device*",
    "/dev/input/*",
    "/dev/lirc*",
    "/dev/media*",
    "/dev/snd/*",
    "/dev/spidev*",
    "/dev/ttyACM*",
    "/dev/ttyAMA*",
    "/dev/ttyS*",
    "/dev/ttyUSB*",
    "/dev/v4l-subdev*",
    "/dev/vchiq",
    "/dev/video*",
];
/// Longest path inside, in bytes.
const MAX_DEVICE_PATH_BYTES: usize = 255;

/// Whether a board's device may be given to a container.
#[must_use]
pub fn is_device_granted(device: &str) -> bool {
    DEVICES.iter().any(|pattern| fits(pattern, device))
}

/// Whether `text` is what `pattern` says, where a star is one or more letters and digits.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            let stars = rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
            (1..=stars).any(|taken| rest.get(taken..).is_some_and(|rest| fits(after, rest)))
        }),
    }
}

pub(super) fn check(device: &str, path: &str) -> Result<(), Refused> {
    if !is_device_granted(device) {
        return refuse(format!(
            "the device '{}' cannot be had: those that can are {}",
            shown(device),
            DEVICES.join(", ")
        ));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    let usable = path.strip_prefix("/dev/").is_some_and(|rest| {
        rest.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain))
    });
    if usable && path.len() <= MAX_DEVICE_PATH_BYTES {
        Ok(())
    } else {
        refuse(format!("a device cannot be at '{}' inside: a path below /dev, please", shown(path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buses_and_cameras_are_granted_and_disks_and_memory_are_not() {
        for device in [
            "/dev/gpiochip0",
            "/dev/i2c-1",
            "/dev/ttyUSB0",
            "/dev/bus/usb/001/004",
            "/dev/dri/renderD128",
            "/dev/iio:device3",
        ] {
            assert!(check(device, device).is_ok(), "{device}");
        }
        for device in [
            "",
            "/dev/mem",
            "/dev/kmem",
            "/dev/kmsg",
            "/dev/sda",
            "/dev/mmcblk0p3",
            "/dev/watchdog",
            "/dev/net/tun",
            "/dev/vhci",
            "/dev/tty0",
            "/dev/ttyUSB",
            "/dev/ttyUSB0/../mem",
            "/dev/snd/../mem",
            "/dev/snd/a/b",
            "/dev/bus/usb/001",
            "dev/ttyUSB0",
            "/dev//ttyUSB0",
            "/dev/ttyUSB0\0",
        ] {
            assert!(check(device, "/dev/x").is_err(), "{device:?}");
        }
    }

    #[test]
    fn inside_it_is_below_dev() {
        assert!(check("/dev/ttyUSB0", "/dev/serial/modem").is_ok());
        let long = format!("/dev/{}", "x".repeat(MAX_DEVICE_PATH_BYTES));
        for path in [
            "",
            "/dev",
            "/dev/",
            "/etc/passwd",
            "/dev/../etc/x",
            "/dev/./x",
            "/dev/a//b",
            "/dev/a b",
            long.as_str(),
        ] {
            assert!(check("/dev/ttyUSB0", path).is_err(), "{path:?}");
        }
    }
}
