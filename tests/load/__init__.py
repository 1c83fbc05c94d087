"""Many sockets, sockets that come and go, and a long run: `tox -e load`."""
