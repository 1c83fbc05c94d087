"""What was done, in all worlds: a test that destroys nothing shows nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from ipaddress import IPv6Address

from .flows import ANSWERED_HERE, ELSEWHERE
from .model import ONLY_BOUND, SHARED, Model, ModelSocket, Verdict

counters: Counter[str] = Counter()

_REASONS = {ONLY_BOUND: "only bound", SHARED: "hidden"}

# Without any of these some law was not tested. "gone" is left out: whether a reset or the destroy reaches the other end
# of a connection first is the kernel's choice.
_NEEDED = (
    *("worlds", "steps", "searches", "found", "refused", "terminations", "destroyed by terminations", "runs"),
    *("destroyed", "mapped", "twins", "skipped", "limit", "would_destroy", "listening", "not connected", "own session"),
    *("failed", "only bound", "hidden", "alive on the other link", "left alone"),
    *("alive on loopback elsewhere", "terminated on loopback elsewhere"),
    *("terminated on a link", "spared on the other link"),
    *("balanced: destroyed", "balanced: rerouted", f"balanced: {ELSEWHERE}", f"balanced: {ANSWERED_HERE}"),
    *("closed meanwhile", "disconnected meanwhile", "listening meanwhile", "hit too late"),
)


def count_search(found: int) -> None:
    counters["searches"] += 1
    counters["found"] += found
    counters["nothing found"] += not found


def count_run(verdicts: Mapping[ModelSocket, Verdict], model: Model) -> None:
    """By verdict and by reason; and of the destroyed those with a mapped address, and those with a destroyed twin."""
    counters["runs"] += 1
    counters["nothing found"] += not verdicts
    for verdict, reason in verdicts.values():
        counters[verdict] += 1
        if reason:
            counters[_REASONS.get(reason, reason)] += 1
    destroyed = {one for one, verdict in verdicts.items() if verdict.verdict == "destroyed"}
    counters["mapped"] += sum(
        isinstance(one.peer, IPv6Address) and one.peer.ipv4_mapped is not None for one in destroyed
    )
    counters["twins"] += sum(len(destroyed.intersection(model.twins(one))) > 1 for one in destroyed)


def missing() -> list[str]:
    return [what for what in _NEEDED if not counters[what]]


def share_in_vain() -> float:
    """Of the searches and runs, how many found nothing."""
    return counters["nothing found"] / (counters["searches"] + counters["runs"])
