"""Run the benchmarks: a table of ratios on standard output, the same as JSON in a file.

python -m tests.benchmarks [--sockets 90000] [--rounds 15] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys

from .. import package_under_test, world

package_under_test.bind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sockets", type=int, default=90_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", default="benchmarks.json")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without bytecode every start would compile the package
    world.enter_network()
    from .crowd import Crowd  # only now does `socklb` mean the package under test
    from .everywhere import measure_everywhere
    from .held import measure_held
    from .measure import measure
    from .tracked import measure_tracked

    with Crowd(options.sockets) as crowd:
        times, ratios = measure(crowd, options.rounds)
        more_times, more_ratios = measure_everywhere(max(1, options.rounds // 3))
    times, ratios = {**times, **more_times}, [*ratios, *more_ratios]
    for measure_more in (measure_tracked, measure_held):
        more_times, more_ratios = measure_more(options.rounds)
        times, ratios = {**times, **more_times}, [*ratios, *more_ratios]
    machine = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "sockets": options.sockets,
        "rounds": options.rounds,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()) + "; best of the rounds, milliseconds\n")
    for name, milliseconds in times.items():
        print(f"  {name:58} {milliseconds:10.2f}")
    print(f"\n  {'ratio':58} {'measured':>10} {'at most':>10}")
    for ratio in ratios:
        print(f"  {ratio.name:58} {ratio.measured:10.2f} {ratio.at_most:10.2f}{'' if ratio.holds else '   <-'}")
    with open(options.json, "w", encoding="utf-8") as file:
        json.dump({"machine": machine, "milliseconds": times, "ratios": [r._asdict() for r in ratios]}, file, indent=2)
    sys.exit(0)


main()
