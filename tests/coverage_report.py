"""`coverage report`; where the tests were not run by root, without the modules that only root can run."""

from __future__ import annotations

import os
import sys

from .reverse_nat.balancer.fixture import is_root

OF_ROOT = ("socklb/cli/rev_nat.py", "socklb/reverse_nat/bpf.py", "socklb/reverse_nat/maps.py")  # they read BPF maps

if __name__ == "__main__":
    words = ["report"]
    if not is_root():
        print("left out, for BPF maps need root of the machine:", *OF_ROOT, flush=True)
        words.append("--omit=" + ",".join(OF_ROOT))
    os.execv(sys.executable, [sys.executable, "-m", "coverage", *words])
