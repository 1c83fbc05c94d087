# SPDX-License-Identifier: MIT
"""A private network: new user and network namespaces with loopback up. Needs no root."""

from __future__ import annotations

import os
import socket
import time
from ipaddress import IPv6Address
from struct import Struct

from .namespaces import CLONE_NEWNET, CLONE_NEWUSER, unshare

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCSIFADDR = 0x8916
_IFF_UP = 1
_LOOPBACK_IFINDEX = 1  # net/flow.h
_IFREQ_FLAGS = Struct(
    "="
    "16s"  # ifr_name
    "H"  # ifr_flags
    "22x"  # the rest of the union
)
_IN6_IFREQ = Struct(
    "="
    "16s"  # ifr6_addr
    "I"  # ifr6_prefixlen
    "i"  # ifr6_ifindex
)


def enter_private_network() -> None:
    """Move this process into new user and network namespaces, with loopback up.

    Where user namespaces are forbidden, a privileged process gets a network namespace alone. There is no way back.
    Raises OSError if neither is allowed, NotSupported if this Python cannot ask for them.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        unshare(CLONE_NEWUSER | CLONE_NEWNET)
    except OSError:
        if uid != 0:
            raise
        unshare(CLONE_NEWNET)
    else:
        _become_root(uid, gid)
    _bring_loopback_up()


def _become_root(uid: int, gid: int) -> None:
    """Map the caller's ids to 0. Where that is refused they stay unmapped, which costs no capability."""
    for path, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        try:
            with open(f"/proc/self/{path}", "w", encoding="ascii") as file:
                file.write(text)
        except (FileNotFoundError, PermissionError):  # mapping root needs CAP_SETFCAP
            pass


def _bring_loopback_up() -> None:
    from fcntl import ioctl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as socket_:
        _, flags = _IFREQ_FLAGS.unpack(ioctl(socket_, _SIOCGIFFLAGS, _IFREQ_FLAGS.pack(b"lo", 0)))
        ioctl(socket_, _SIOCSIFFLAGS, _IFREQ_FLAGS.pack(b"lo", flags | _IFF_UP))


def add_loopback_address(address: str) -> None:
    """Give loopback one more v6 address, and wait until it can be used. Raises OSError where IPv6 is missing."""
    from fcntl import ioctl

    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as socket_:
        request = _IN6_IFREQ.pack(IPv6Address(address).packed, 128, _LOOPBACK_IFINDEX)
        ioctl(socket_, _SIOCSIFADDR, request)
        _wait_until_usable(socket_, address)


def _wait_until_usable(socket_: socket.socket, address: str) -> None:
    """A work queue makes an address usable, on loopback too (addrconf_dad_work()); before that, bind() refuses it."""
    for pause in (0.001, 0.01, 0.1, 1.0):
        try:
            socket_.bind((address, 0))
        except OSError:
            time.sleep(pause)
        else:
            return
    socket_.bind((address, 0))
