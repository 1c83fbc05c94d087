"""What a guest says in its last line, and what is read from there."""

from __future__ import annotations

import json
import os
import platform
from typing import NamedTuple, Optional

_MARK = "SOCKLB-REPORT "


class Report(NamedTuple):
    kernel: str
    machine: str
    python: str
    passed: int
    failed: int
    skipped: dict[str, int]
    """How many, by the reason."""

    @classmethod
    def of(cls, passed: int, failed: int, skipped: dict[str, int]) -> Report:
        """What has run here."""
        system = os.uname()
        return cls(system.release, system.machine, platform.python_version(), passed, failed, skipped)

    @classmethod
    def read(cls, output: str) -> Optional[Report]:
        """From what a guest has printed; None if it did not come to its end."""
        for line in output.splitlines():
            if line.startswith(_MARK):
                return cls(**json.loads(line[len(_MARK) :]))
        return None

    def show(self) -> None:
        print(_MARK + json.dumps(self._asdict()), flush=True)

    @property
    def ok(self) -> bool:
        return self.passed > 0 and not self.failed

    def __str__(self) -> str:
        counts = [f"{self.passed} passed", *([f"{self.failed} failed"] if self.failed else [])]
        counts += [f"{count} skipped ({reason})" for reason, count in self.skipped.items()]
        return f"Linux {self.kernel} {self.machine}, Python {self.python}: {', '.join(counts)}"
