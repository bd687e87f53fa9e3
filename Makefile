# Everything is in `cargo xtask`; this is for fingers.
.PHONY: help setup demo test bench images clean

help:
	@echo "make demo    boot a cluster in QEMU and tell its story (installs and builds what is missing)"
	@echo "make test    run every test tier"
	@echo "make bench   measure"
	@echo "make images  build the disk images of both roles, ARCH=x86_64 or aarch64"
	@echo "make setup   install what is missing, nothing else"
	@echo "make clean   remove build output; kernels and packages stay in the cache"

ARCH ?= $(shell uname -m)

setup:
	@cargo xtask setup

demo:
	@cargo xtask demo --arch $(ARCH)

test:
	@cargo xtask test

bench:
	@cargo xtask bench

images: setup
	@cargo xtask images --arch $(ARCH)

clean:
	@cargo clean
