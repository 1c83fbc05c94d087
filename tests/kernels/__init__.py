"""Linux kernels that were never installed, each with the Python of its time, booted by emulation."""
