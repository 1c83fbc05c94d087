# SPDX-License-Identifier: MIT
"""Why a client of a backend that went down is spared, or failed: the words of reports, records and metrics."""

ALIVE_AGAIN = "its backend is alive again"
NO_REV_NAT = "no reverse-NAT entry"

# Where conntrack led to it:
OTHER_ZONE = "another zone has the same connection, to a backend that lives"
ELSEWHERE = "another namespace has the same connection, to a backend that lives"
SEVERAL = "the same connection is in more namespaces than conntrack has it to this backend"
ANSWERED_HERE = "a local socket answers it: it is not the balanced one"
BY_IPVS = "balanced by IPVS"
NO_SOCKET = "no local socket"
NOT_LOOSE = "tcp_loose is 0"
STILL_BALANCED = "still balanced to it"
PERHAPS_DELETED = "interrupted, and perhaps deleted"

REASONS = (
    ALIVE_AGAIN,
    NO_REV_NAT,
    OTHER_ZONE,
    ELSEWHERE,
    SEVERAL,
    ANSWERED_HERE,
    BY_IPVS,
    NO_SOCKET,
    NOT_LOOSE,
    STILL_BALANCED,
    PERHAPS_DELETED,
)
