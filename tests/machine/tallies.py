"""What was done, in all worlds: a test that destroys nothing shows nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from ipaddress import IPv6Address

from .model import ONLY_BOUND, SHARED, Inhabitant, Model, Verdict

tally: Counter[str] = Counter()

_REASONS = {ONLY_BOUND: "only bound", SHARED: "hidden"}

# Without any of these some law was not looked at. Who is "gone" is left out: whether a reset or the destroy is first at
# the other end of a connection is the kernel's choice.
_NEEDED = (
    *("worlds", "steps", "searches", "found", "refused", "terminations", "cut", "runs"),
    *("destroyed", "mapped", "twins", "skipped", "limit", "dry run", "listening", "not connected", "own session"),
    *("failed", "only bound", "hidden"),
)


def count_search(found: int) -> None:
    tally["searches"] += 1
    tally["found"] += found
    tally["in vain"] += not found


def count_run(said: Mapping[Inhabitant, Verdict], model: Model) -> None:
    """By verdict and by reason; and of the destroyed those with a mapped address, and those who had to wait for a twin.

    Before they are buried, while the model still has them.
    """
    tally["runs"] += 1
    tally["in vain"] += not said
    for verdict, reason in said.values():
        tally[verdict] += 1
        if reason:
            tally[_REASONS.get(reason, reason)] += 1
    destroyed = {one for one, verdict in said.items() if verdict.verdict == "destroyed"}
    tally["mapped"] += sum(isinstance(one.peer, IPv6Address) and one.peer.ipv4_mapped is not None for one in destroyed)
    tally["twins"] += sum(len(destroyed.intersection(model.twins(one))) > 1 for one in destroyed)


def never_done() -> list[str]:
    return [what for what in _NEEDED if not tally[what]]


def share_in_vain() -> float:
    """Of the searches and runs, how many met nobody."""
    return tally["in vain"] / (tally["searches"] + tally["runs"])
