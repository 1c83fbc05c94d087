"""Answers of an API server, and what of them goes over the wire."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

from .endpoint_slices import encode

WHOLE, CLOSE, RESET, SILENCE, TRICKLE, FLOOD = "whole", "close", "reset", "silence", "trickle", "flood"
"""How an answer ends. After SILENCE the connection stays open, and nothing more comes. The last two do not end by
themselves: `again` is sent now and then, or as fast as it is taken (FLOOD_SIZE bytes are as good as no end).
"""

FLOOD_SIZE = 64 << 20


class Answer(NamedTuple):
    """What a request gets. If it does not end WHOLE, its last chunk lacks so many bytes; status 0: without a head."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012 - it is not changed
    ending: str = WHOLE
    missing: int = 0
    again: bytes = b""


def status(code: int, reason: str, message: str, *, retry_after: int | None = None, next_page: str = "") -> Answer:
    """An error, as API servers word it."""
    metadata = {"continue": next_page} if next_page else {}
    body = {"kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure"}
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Answer(code, encode({**body, "message": message, "reason": reason, "code": code}), headers)


UNAUTHORIZED = status(401, "Unauthorized", "Unauthorized")
FORBIDDEN = status(403, "Forbidden", 'endpointslices.discovery.k8s.io is forbidden: User "x" cannot list resource')
EXPIRED_PAGE = status(410, "Expired", "The provided continue parameter is too old", next_page="inconsistent")


def head(code: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {code} {HTTPStatus(code).phrase}", "Content-Type: application/json"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "\r\n"]).encode()


def chunk(data: bytes, missing: int) -> bytes:
    """One chunk; nothing for no data: that would be the end of the body."""
    return b"%x\r\n%b%b" % (len(data) + missing, data, b"" if missing else b"\r\n") if data or missing else b""
