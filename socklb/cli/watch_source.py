# SPDX-License-Identifier: MIT
"""Which source `watch` follows, and the options that belong to one."""

from __future__ import annotations

import argparse
import os
import re
import sys
from contextlib import contextmanager

from ..sources import FileSource, LineSource
from ..values import duration
from .outlet import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Union

    from ..sources.kubernetes import KubernetesSource
    from ..termination.loop import TerminationLoop
    from ..termination.table import PackedTable

    AnySource = Union[FileSource, LineSource, KubernetesSource]

STANDARD_INPUT, KUBERNETES = "-", "kubernetes"

_MISSPELT_KUBERNETES = re.compile(r"k(8s|ub)\w*", re.IGNORECASE)
_NEVER = "never"
_MEMORY_SECONDS = 10.0  # for the last writing, to a disk that may not answer
_NOT_GIVEN = object()  # None is never
_KUBERNETES_OPTIONS = ("kubeconfig", "kube_namespace", "kube_selector", "not_serving", "terminating")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        metavar="-|FILE|kubernetes",
        required=True,
        help="standard input, a file that is followed, or the EndpointSlices of a Kubernetes API server; a file of "
        "such a name is ./kubernetes",
    )
    group = parser.add_argument_group(
        "options of --source kubernetes", "D is a number with ms, s, m or h, as in 30s, or never."
    )
    parser.set_defaults(**dict.fromkeys(_KUBERNETES_OPTIONS, _NOT_GIVEN))
    group.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="where the API server is, and who one is: JSON, as `kubectl config view --raw --flatten --minify -o json` "
        "prints it; default: the service account of the pod that this runs in",
    )
    group.add_argument("--kube-namespace", metavar="NS", help="follow this namespace alone; default: all")
    group.add_argument("--kube-selector", metavar="LABELS", help="follow slices with these labels alone")
    group.add_argument(
        "--not-serving",
        metavar="D",
        type=_duration_or_never,
        help="an endpoint that has not served for so long goes down, while another one of its service serves; "
        "default: 30s",
    )
    group.add_argument(
        "--terminating",
        metavar="D",
        type=_duration_or_never,
        help="an endpoint that serves, but has been terminating for so long, goes down; default: never",
    )


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--remember",
        metavar="FILE",
        help="keep there what is alive, and at the next start cut what has gone down meanwhile; not after a reboot",
    )
    parser.add_argument(
        "--remember-for",
        metavar="D",
        type=duration,
        help="what is older is not cut, for an address may be another's by then; default: 15m",
    )
    parser.add_argument("--remember-as", metavar="NAME", help="with --source -: who writes there")


@contextmanager
def remembered(
    options: argparse.Namespace,
    source: AnySource,
    table: PackedTable,
    loop: TerminationLoop,
    warn: Callable[[str], object],
) -> Iterator[None]:
    """What an earlier process has left is recalled; while active, a thread keeps the file."""
    if options.remember is None:
        if options.remember_for is not None or options.remember_as is not None:
            raise ValueError("--remember-for and --remember-as need --remember FILE")
        yield
        return
    from ..termination.remember import Memory  # few need it

    if os.path.realpath(options.remember) == os.path.realpath(options.source):
        raise ValueError(f"--remember {options.remember} is what --source follows: it would be overwritten")

    keep = {} if options.remember_for is None else {"keep_seconds": options.remember_for}
    memory = Memory(options.remember, source, table, warn, dry_run=options.dry_run, **keep)
    memory.recall()
    thread = start_thread(lambda: memory.run(lambda: loop.outstanding), "socklb memory")
    try:
        yield
    finally:
        memory.stop()
        thread.join(_MEMORY_SECONDS)


def _duration_or_never(text: str) -> float | None:
    try:
        return None if text == _NEVER else duration(text)
    except ValueError as error:
        raise ValueError(f"{error}, or never") from None


def source_from(options: argparse.Namespace) -> AnySource:
    """Raises ValueError for an option of another source, and for a kubeconfig that is of no use."""
    values = {name: getattr(options, name) for name in _KUBERNETES_OPTIONS}
    given = {name: value for name, value in values.items() if value is not _NOT_GIVEN}
    if options.remember_as is not None and options.source != STANDARD_INPUT:
        raise ValueError(f"--remember-as needs --source {STANDARD_INPUT}: others have a name")
    if options.source == KUBERNETES:
        return _kubernetes(**given)
    if given:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} needs --source {KUBERNETES}")
    if options.source != STANDARD_INPUT:
        is_misspelt = _MISSPELT_KUBERNETES.fullmatch(options.source)
        return FileSource(options.source, if_missing=f"; a cluster is --source {KUBERNETES}" if is_misspelt else "")
    if sys.stdin is None:
        raise ValueError("--source -: standard input is closed")
    return LineSource(sys.stdin.fileno(), _name_of(options))


def _name_of(options: argparse.Namespace) -> str:
    if options.remember is not None and options.remember_as is None:
        raise ValueError("--remember needs --remember-as NAME with --source -: whoever writes there may be another one")
    return options.remember_as or ""


def _kubernetes(
    kubeconfig: str | None = None,
    kube_namespace: str = "",
    kube_selector: str = "",
    **seconds: float | None,
) -> KubernetesSource:
    from ..sources.kubernetes import KubernetesSource, from_kubeconfig, in_cluster

    access = in_cluster() if kubeconfig is None else from_kubeconfig(kubeconfig)
    return KubernetesSource(access, namespace=kube_namespace, selector=kube_selector, **seconds)
