#!/bin/sh
# Buildroot calls this when the kernel is built:
#   post-image.sh <images directory> <x86_64|aarch64> <uefi|raspberrypi>
# It builds Wherry's static programs and makes broker/ and node/ with the assembler that `cargo xtask images` uses.
set -eu

images="$1"
arch="$2"
firmware="$3"
here="$(cd "$(dirname "$0")" && pwd)"
tree="$(cd "$here/../../.." && pwd)"

case "$arch" in
x86_64) kernel="$images/bzImage" stub=linuxx64.efi.stub ;;
aarch64) kernel="$images/Image" stub=linuxaa64.efi.stub ;;
*) echo "post-image: no Wherry for $arch" >&2; exit 1 ;;
esac

case "$firmware" in
uefi) set -- --efi-stub "/usr/lib/systemd/boot/efi/$stub" ;;
raspberrypi)
	cp "$here/../raspberrypi/config.txt" "$images"/*.dtb "$images/rpi-firmware/"
	set -- --raspberry-pi "$images/rpi-firmware"
	;;
*) echo "post-image: no firmware called $firmware" >&2; exit 1 ;;
esac

cd "$tree"
cargo xtask build --arch "$arch"
programs="${CARGO_TARGET_DIR:-target}/wherry/$arch/bin"
for role in broker node; do
	cargo xtask assemble --arch "$arch" --role "$role" --binary "$programs/wherry-$role" \
		--kernel "$kernel" --out "$images/$role" "$@"
done
