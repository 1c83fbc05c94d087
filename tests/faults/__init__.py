"""What goes wrong on the way to the kernel and back, for every public call: on a fake kernel and on the real one."""
