"""What names the sockets it matches, so that a destroy cannot hit everything by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from socklb import SocketFilter, cgroup
from socklb.filters import Condition
from socklb.filters.bounds import bounds
from socklb.kernel import mounts

from .trees import conditions, names_what_it_matches


class TestBounded:
    """DESIGN, section 4: a narrow prefix, at most 4,096 ports of a side, a device, a cgroup other than the root, a
    process other than 1, a user other than 0.
    """

    @pytest.mark.parametrize(
        "text",
        ["dst 10.0.0.1", "src 10.1/16", "dst 2001:db8::/32", "dst [::1]", "dst [::ffff:10.1.0.0]/112",
         "dst [64:ff9b::10.1.0.0]/112", "dport 80", "sport 0", "dport <= 4095", "sport >= 61440", "dst 0/0:80",
         "dport > 80 and dport <= 4176", "( sport >= 1024 ) and ( dst 10/8 and sport < 2000 )", "dev lo", "dev 2",
         "cgroup 77", "cgroup web", "dst 10.0.0.1 and fwmark 1", "dst 10.0.0.1 and not dport 80",
         "dport 80 or dev lo", "not not dport 80", "not dport > 80", "not ( dport > 80 or dst 10.0.0.1 )",
         "not ( not dst 10.0.0.1 or fwmark 1 )", "not ( not dport 1 and not dev lo )",
         "not ( dport < 1000 or dport > 2000 )", "not ( dport >= 1000 and dport <= 65000 )", "not dst *",
         "cgroup web/", "pid 2", "uid 1", "stalled 30s and dport 80"],
    )  # fmt: skip
    def test_these_bound(self, text: str) -> None:
        assert SocketFilter.parse(text, "tcp").is_bounded

    @pytest.mark.parametrize(
        "text",
        ["dst *", "dst 0/0", "dst 0.0.0.0/1", "dst 10/8", "dst 10.0/15", "dst ::/0", "dst ::/16", "dst ::/80",
         "dst ::fffe:0:0/95", "dst 2001::/31", "dst ::ffff:0:0/96", "dst [::ffff:10.0.0.0]/111", "dst 64:ff9b::/96",
         "dst 64:ff9b::/64", "dst [64:ff9b::10.0.0.0]/111", "sport > 0", "dport >= 1", "sport >= 1024",
         "dport <= 4096", "dport > 80 and dport <= 4177", "dport > 60000 and sport < 60000", "dev 0", "dev 00",
         "cgroup /", "cgroup //", "cgroup /.", "cgroup 0", "cgroup 1", "fwmark 1", "autobound", "dport != 80",
         "not dst 10.0.0.1", "not dev lo", "not cgroup web", "dev lo or fwmark 1", "dst 10.0.0.1 or dport != 80",
         "not ( dst 10.0.0.1 and dport 80 )", "not ( dport >= 80 and dport <= 90 )",
         "( dport < 9000 or fwmark 1 ) and dport > 8000", "pid 1", "uid 0", "not pid 2", "not uid 1", "stalled 1h",
         "idle 1h"],
    )  # fmt: skip
    def test_these_do_not(self, text: str) -> None:
        assert not SocketFilter.parse(text, "tcp").is_bounded

    @given(conditions)
    def test_the_rule_for_any_tree(self, condition: Condition) -> None:
        assert bounds(condition) == names_what_it_matches(condition)

    @given(conditions, conditions)
    def test_what_narrows_a_bounded_condition_leaves_it_bounded(self, a: Condition, b: Condition) -> None:
        assert not bounds(a) or (bounds(a & b) and bounds(b & a))

    def test_what_is_mounted_as_the_root_is_the_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a cgroup namespace its id is not 1. A bind mount of another cgroup is none."""
        root = tmp_path / "cgroup"
        for path in (root, root / "web"):
            path.mkdir()
            (path / "cgroup.controllers").touch()
        table = tmp_path / "mountinfo"
        table.write_text(
            f"41 31 0:38 / {root} rw - cgroup2 cgroup2 rw\n42 31 0:38 /web {root}/web rw - cgroup2 cgroup2 rw\n"
        )
        monkeypatch.setattr(mounts, "_MOUNTINFO", str(table))
        for same in (str(root), f"{root}/", f"{root}/web/..", ".", "web/..", root.stat().st_ino):
            assert not bounds(cgroup(same))
        for other in ("web", f"{root}/web", (root / "web").stat().st_ino, "missing"):
            assert bounds(cgroup(other))
