"""Run both checkers over the right uses and the wrong ones; ends with 1, and says where, if one sees it otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
WRONG = FOLDER / "wrong.py"
FILES = [str(FOLDER / "right.py"), str(WRONG)]
EXPECTED = {
    (WRONG.name, number)
    for number, line in enumerate(WRONG.read_text(encoding="utf-8").splitlines(), 1)
    if "# wrong" in line
}


def complaints_of_mypy() -> set[tuple[str, int]]:
    words = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "-O", "json", *FILES]
    lines = subprocess.run(words, stdout=subprocess.PIPE, encoding="utf-8", check=False).stdout.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return {(Path(one["file"]).name, one["line"]) for one in found if one["severity"] == "error"}


def complaints_of_pyright() -> set[tuple[str, int]]:
    words = ["basedpyright", "--pythonpath", sys.executable, "--level", "error", "--outputjson", *FILES]
    run = subprocess.run(words, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    found = json.loads(run.stdout)["generalDiagnostics"]
    return {(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in found if one["severity"] == "error"}


def main() -> int:
    wrong = 0
    for checker, complaints in (("mypy", complaints_of_mypy()), ("pyright", complaints_of_pyright())):
        for name, line in sorted(EXPECTED ^ complaints):
            wrong += 1
            seen = "does not complain of" if (name, line) in EXPECTED else "complains of"
            print(f"{checker} {seen} {FOLDER / name}:{line}")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
