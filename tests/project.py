"""Where the tests stand: in the checkout of socklb, or beside a vendored copy, where its other files are not.

What is called README.md or setup.cfg there is the host project's.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

IS_CHECKOUT = README.exists() and README.read_text(encoding="utf-8").startswith("# socklb\n")

only_in_checkout = pytest.mark.skipif(
    not IS_CHECKOUT, reason="this is no checkout of socklb: the tests run beside a vendored copy"
)


def document(name: str) -> str:
    """What is in a file of docs/."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")
