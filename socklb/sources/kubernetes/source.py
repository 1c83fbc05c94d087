# SPDX-License-Identifier: MIT
"""Follow the EndpointSlices of an API server: list them, watch them, and list them anew when that is needed.

What holds, whatever the server does: nothing goes down before a first list is whole. That the server is gone, or the
way to it, takes nothing down; nor does time alone: whoever does not serve goes down at the first word (an event, or the
bookmark of each minute) that comes after its time. After an error the watch goes on from the last version; where that
is too old, or somebody does not serve, a new list is compared with what is known.
"""

from __future__ import annotations

from random import random
from threading import Event
from time import monotonic

from ..protocol import shortened
from ..status import SourceStatus
from .client import BadAnswer, Client, Refused, checked, refusal_of
from .config import AccessProblem
from .endpoint_slice import KINDS, MALFORMED, EndpointSlice, key_of
from .endpoints import Endpoints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ...termination.table import PackedTable
    from .config import Access
    from .endpoint_slice import Key

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
"""After a failure the next attempt comes within so many seconds, at random; twice as many after each further one."""

CONFIRMED_SECONDS = 60.0
"""What a list lacks that is older than what was seen goes down if a second one, so much later, lacks it too."""

_HASTY_SECONDS = 1.0  # after a watch that ends so soon, with nothing said, comes a pause
_ROLE = "it needs a role that may list and watch endpointslices of the API group discovery.k8s.io"
_GONE = 410


class KubernetesSource:
    """Follows an API server until `stop()`."""

    def __init__(
        self,
        access: Access,
        *,
        namespace: str = "",
        selector: str = "",
        not_serving: float | None = 30.0,
        terminating: float | None = None,
    ) -> None:
        """`namespace` and `selector` as in a list request; "" is all. Seconds as in Endpoints; None: never."""
        self._access, self._client = access, Client(access, namespace, selector)
        self.identity = f"kubernetes {access.identity} {namespace or '*'} {selector or '*'}"
        of = f" of namespace {namespace}" if namespace else ""
        with_labels = f" with {selector}" if selector else ""
        self.text = f"the EndpointSlices{of}{with_labels} at {access.url}"
        self.last_version = ""
        """The last one seen; that of an earlier process may be put in before `follow`."""
        self.status = SourceStatus(KINDS, speaks_up=True)
        self._seconds = {"not_serving": not_serving, "terminating": terminating}
        self._warn: Callable[[str], object] = lambda text: None
        self._table: PackedTable
        self._version = ""  # where a watch goes on; "": a list is needed
        self._confirmed: float | None = None  # when a second list may say what is missing
        self._problem, self._is_of_watch = "", False
        self._failures, self._has_connected = 0, False
        self._stopped = Event()

    def stop(self) -> None:
        self._stopped.set()
        self._client.hang_up()

    def follow(self, table: PackedTable, warn: Callable[[str], object]) -> None:
        self._warn, self._table = warn, table
        endpoints = Endpoints(table, warn, self.status, **self._seconds)
        while not self._stopped.is_set():
            self._stopped.wait(self._follow_once(endpoints))

    def _follow_once(self, endpoints: Endpoints) -> float:
        """Over one connection, as long as it goes well; then for how long to leave the server alone."""
        begin, asked, is_watching = monotonic(), 0.0, False
        try:
            with self._client.connected():
                self.status.reconnects += self._has_connected
                self._has_connected = True
                if not self._version or endpoints.next_time() is not None:  # who serves again must be seen at once
                    self._list(endpoints)
                is_watching = True
                self._watch(endpoints)
                if monotonic() - begin > _HASTY_SECONDS:
                    return 0.0
        except (AccessProblem, BadAnswer, OSError, Refused) as error:
            if self._stopped.is_set():
                return 0.0
            if _is_silence(error):
                self._version = ""  # a watch from a version of the future is silent too
            if not isinstance(error, Refused) or error.status != _GONE:  # which each restart of a server brings
                self._say(self._text_of(error), is_of_watch=is_watching)
            asked = min(LONGEST_PAUSE, getattr(error, "retry_after", 0.0))
        longest: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures, 8))
        self._failures += 1
        return max(random() * longest, asked)

    def _list(self, endpoints: Endpoints) -> None:
        slices: dict[Key, EndpointSlice] = {}
        version, is_whole = "", True
        for version, items in self._client.pages():  # noqa: B007 # the last one's is that of all
            for item in items:
                key, one = self._read(item)
                if key in slices:
                    raise BadAnswer("a list has a slice twice")
                one = one or endpoints.last(key)
                if one is None:  # it may have had what an earlier process had alive: that must not count as gone
                    is_whole = is_whole and not self._table.is_recalling
                else:
                    slices[key] = one
        now = monotonic()
        if self._is_believed(version, now) and is_whole:
            endpoints.replace(slices, now)
            self.last_version, self._confirmed = version, None
            self.status.has_table = True
        else:
            endpoints.add(slices, now)
        self._version = version
        self.status.heard()
        if not self._is_of_watch:
            self._withdraw()

    def _is_believed(self, version: str, now: float) -> bool:
        """Whether what is missing from a list is gone. One that is older than what was seen is from a backup."""
        if self._confirmed is None and not _is_older(version, self.last_version):
            return True
        if self._confirmed is None:
            self._confirmed = now + CONFIRMED_SECONDS
            self._warn(
                f"{self._access.url}: its list is of version {version}, older than {self.last_version}, which was seen "
                "before: a backup, perhaps; what is missing from it goes down if a second list "
                f"{CONFIRMED_SECONDS:.0f} s later lacks it too"
            )
        return now >= self._confirmed

    def _watch(self, endpoints: Endpoints) -> None:
        """Until its end."""
        left = None if self._confirmed is None else self._confirmed - monotonic()
        for kind, value in self._client.watch(self._version, left):
            if kind == "ERROR":
                self._version = ""
                raise refusal_of(value)
            self._apply(endpoints, kind, value)
            self._failures = 0  # not after a list: every node would ask for one every few seconds
            self.status.heard()
            self._withdraw()
        if self._confirmed is not None and monotonic() >= self._confirmed:
            self._version = ""

    def _apply(self, endpoints: Endpoints, kind: str, value: Any) -> None:
        try:
            version = checked(value["metadata"]["resourceVersion"])
        except (KeyError, TypeError):
            raise BadAnswer("an event has no version") from None
        if kind in ("ADDED", "MODIFIED"):
            key, one = self._read(value)
            if one is not None:
                endpoints.put(key, one, monotonic())
        elif kind == "DELETED":
            endpoints.remove(self._key(value), monotonic())
        elif kind == "BOOKMARK":
            endpoints.settle(monotonic())
        else:
            raise BadAnswer(f"an event of the type {shortened(repr(kind))}")
        self._version = version
        if self._confirmed is None and not _is_older(version, self.last_version):
            self.last_version = version

    def _read(self, value: Any) -> tuple[Key, EndpointSlice | None]:
        """A slice; None for one that is not as it should be: what was known of it before stays."""
        key = self._key(value)
        try:
            return key, EndpointSlice.read(value, self._note)
        except ValueError as error:
            self._note(MALFORMED, f"{'/'.join(key)}: {error}")
            return key, None

    @staticmethod
    def _key(value: Any) -> Key:
        try:
            return key_of(value)
        except (KeyError, TypeError):
            raise BadAnswer("a slice has no namespace and name") from None

    def _note(self, kind: str, what: str) -> None:
        self.status.bad_entries[kind] += 1
        if self.status.bad_entries[kind] == 1:
            self._warn(f"{KINDS[kind]} are left out: {shortened(what)}")

    def _say(self, problem: str, *, is_of_watch: bool) -> None:
        """Once, until it is withdrawn; that of a watch is so by a watch: lists may well be whole in between."""
        self._is_of_watch = is_of_watch
        if problem != self._problem:
            self._problem = problem
            self._warn(f"{problem}; the last table stays, and it is tried again")

    def _withdraw(self) -> None:
        if self._problem:
            self._problem = ""
            self._warn(f"{self._access.url} answers again")

    def _text_of(self, error: Exception) -> str:
        url = self._access.url
        if isinstance(error, AccessProblem):
            return str(error)
        if isinstance(error, Refused):
            advice = {401: f"; it does not take {self._access.credentials}", 403: f"; {_ROLE}"}.get(error.status, "")
            return f"{url} answers {error}{advice}"
        if isinstance(error, BadAnswer):
            return f"{url}: {error}"
        if _is_silence(error):
            return f"{url} does not answer"
        return f"{url} cannot be reached: {getattr(error, 'strerror', None) or error}"


def _is_silence(error: Exception) -> bool:
    """CPython 3.9 has an OSError without a number for it."""
    return isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno is None)


def _is_older(version: str, than: str) -> bool:
    """Versions are whole numbers without leading zeros, longer is larger (apimachinery's util/resourceversion); others,
    and "", are not comparable.
    """
    return version.isdigit() and than.isdigit() and (len(version), version) < (len(than), than)
