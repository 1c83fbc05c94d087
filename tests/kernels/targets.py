"""The kernels and machines that there are, by name."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """A suite of Debian for an architecture: its kernel, its Python, its iproute2."""

    name: str
    suite: str
    architecture: str
    kernel: str = ""
    """The package; without one, the kernel that runs here runs these programs too."""
    emulator: tuple[str, ...] = ()
    console: str = ""
    start: tuple[str, ...] = ("rdinit=/init",)
    """What the kernel is told to start."""
    packages: tuple[str, ...] = ()
    """Further ones."""


_AMD64 = ("linux-image-cloud-amd64", ("qemu-system-x86_64", "-M", "q35", "-cpu", "max"), "ttyS0")
_ARM64 = ("linux-image-cloud-arm64", ("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57"), "ttyAMA0")
_S390X = ("linux-image-s390x", ("qemu-system-s390x", "-M", "s390-ccw-virtio", "-cpu", "max"), "ttysclp0")

# The first process is systemd: it runs one command when it has started, and then ends the machine.
_SYSTEMD = (
    *("rdinit=/lib/systemd/systemd", "systemd.firstboot=no", "systemd.condition_first_boot=no"),
    *("systemd.condition_needs_update=no", "systemd.show_status=no"),
    *("systemd.log_target=console", "systemd.log_level=notice"),
    "systemd.run=\"/bin/sh -c 'cd /socklb && exec python3 -m tests.kernels.guest.unit >/dev/console 2>&1'\"",
)

DEFAULT, ALL = "5.10", "all"
TARGETS = {
    target.name: target
    for target in (
        Target(DEFAULT, "bullseye", "amd64", *_AMD64),
        Target("6.1", "bookworm", "amd64", *_AMD64),
        Target("6.12", "trixie", "amd64", *_AMD64),
        Target("newest", "forky", "amd64", *_AMD64),
        Target("s390x", "bookworm", "s390x", *_S390X),  # big-endian
        Target("arm64", "bookworm", "arm64", *_ARM64),
        Target("i386", "bookworm", "i386"),  # programs of 32 bits
        Target("unit", "trixie", "amd64", *_AMD64, _SYSTEMD, ("systemd", "procps")),  # the service, under systemd
    )
}

# What each program that is called is packaged in.
PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "cpio": "cpio",
    "depmod": "kmod",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-s390x": "qemu-system-misc",
}
