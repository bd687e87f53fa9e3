# Nothing here is built by Buildroot's package system: the programs are static, and the post-image step builds them
# with the command that everybody uses.
