# SPDX-License-Identifier: MIT
"""Byte layouts, encoded and decoded, and nothing else: no module here opens anything, or imports what could.

What the kernel sends can be encoded too, for tests and fake kernels.

Ports and addresses are big-endian on the wire; everything else is in the machine's own byte order.
"""
