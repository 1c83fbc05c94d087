# SPDX-License-Identifier: MIT
"""Can conntrack be asked in this network namespace, by this caller?"""

from __future__ import annotations

import errno

from ..engine.probe import NOT_PERMITTED, SUPPORTED, Support
from ..engine.report import ABSENT
from ..errors import NotPermitted, NotSupported
from .table import CONFIG, ConntrackTable


def conntrack_support() -> Support:
    """As `probe` says it of sockets: "supported", "absent" or "not_permitted". Raises KernelError for an answer that
    is none of these.
    """
    try:
        with ConntrackTable() as table:
            table.count()
    except NotPermitted:
        return Support(NOT_PERMITTED, "CAP_NET_ADMIN in the user namespace that owns the network namespace")
    except NotSupported as error:
        if error.errno == errno.ENOSYS:  # Python's fault, and not the kernel's
            raise
        return Support(ABSENT, CONFIG)
    return Support(SUPPORTED)
