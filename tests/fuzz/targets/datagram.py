"""Any bytes as a datagram from the kernel: framing, rows with their attributes, acknowledgements, ends of dumps.

Each reader gives a value or MalformedMessage with an offset inside, and moves on. What was read can be written, and
reads back the same.
"""

from __future__ import annotations

from socklb import InetSocket, MalformedMessage
from socklb.wire.attributes import decode_attribute, encode_value
from socklb.wire.netlink import (
    NLATTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSGHDR,
    decode_ack,
    decode_done,
    encode_ack,
    encode_attribute,
    encode_done,
    iter_attributes,
    iter_messages,
)
from socklb.wire.records import Record
from socklb.wire.reply import MSG_SIZE, decode_msg
from socklb.wire.request import IPPROTO_TCP

from .replies import check_error, read

MAX_ERRNO = 4095  # linux/err.h


def check(data: bytes) -> None:
    behind = 0
    try:
        for type_, flags, _, _, start, end in iter_messages(data, len(data)):
            assert behind + NLMSGHDR.size == start <= end <= len(data), "a message that does not move on"
            behind = (end + 3) & ~3
            _check_message(type_, flags, data, start, end)
    except MalformedMessage as error:
        check_error(error, len(data))
    else:
        assert behind >= len(data)


def _check_message(type: int, flags: int, data: bytes, start: int, end: int) -> None:
    if type == NLMSG_ERROR:
        ack = decode_ack(data, start, end, flags)
        assert 0 <= ack.errno <= MAX_ERRNO
        flags, payload = encode_ack(ack)
        length = ack.length or NLMSGHDR.size  # a 0 there leaves it to encode_ack
        assert decode_ack(payload, 0, len(payload), flags) == ack._replace(length=length)
        assert isinstance(ack.text, str)
    elif type == NLMSG_DONE:
        done = decode_done(data, start, end, flags)
        assert 0 <= done.errno <= MAX_ERRNO
        flags, payload = encode_done(done)
        assert decode_done(payload, 0, len(payload), flags) == done
        assert isinstance(done.text, str)
    else:
        _check_row(data[start:end])


def _check_row(row: bytes) -> None:
    socket = InetSocket(row, IPPROTO_TCP)
    read(socket)
    message = decode_msg(row)
    assert decode_msg(message.encode()) == message
    assert (message.id.src, message.id.dst) == (socket.src_packed, socket.dst_packed)
    assert message.id.cookie == socket.cookie
    at = MSG_SIZE
    for type_, payload in iter_attributes(row, MSG_SIZE, len(row)):
        assert row[at + NLATTR.size : at + NLATTR.size + len(payload)] == payload
        at += len(encode_attribute(type_, payload))
        _check_attribute(type_, payload)
    assert at >= len(row), "attributes that are passed over"


def _check_attribute(type: int, payload: bytes) -> None:
    """What decodes to a value encodes to the very bytes it came from."""
    name, value = decode_attribute(type, payload)
    assert encode_value(name, value)[1] == payload
    if isinstance(value, Record):
        known = value.raw[: value.SIZE]
        assert known + value.unknown == payload, "bytes that are lost"
