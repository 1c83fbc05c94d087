# SPDX-License-Identifier: MIT
"""Every system call that is not an ordinary file or socket: AF_NETLINK, namespaces, ioctl, /proc, /sys."""
