"""What many sockets, many of them coming and going, or a long run bring to light: `tox -e load`."""
