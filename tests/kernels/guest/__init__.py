"""What runs in a guest, by the Python that it has; the standard library is all there is, but for pytest."""
