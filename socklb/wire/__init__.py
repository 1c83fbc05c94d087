# SPDX-License-Identifier: MIT
"""Byte layouts, both ways, and nothing else: no module in here opens anything or imports what could.

Both ways: what the kernel sends can be made as well as read, for tests and for fake kernels.

Ports and addresses are big-endian on the wire; everything else is in the machine's own byte order.
"""
