# SPDX-License-Identifier: MIT
"""Which boot of the kernel this is: random(4)."""

from __future__ import annotations


def boot_id() -> str:
    """Another one after each boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
