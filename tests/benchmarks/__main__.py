"""Run the benchmarks: a table of ratios on standard output, the same as JSON in a file.

python -m tests.benchmarks [--sockets 90000] [--rounds 15] [--json FILE]
python -m tests.benchmarks --sockets 1000000      only what takes so many to see; 3 GB of kernel memory
python -m tests.benchmarks --namespaces 1000      one pass over so many namespaces, with 10,000 processes
python -m tests.benchmarks --plot docs/costs.svg  how each cost grows, as a picture
"""

from __future__ import annotations

import argparse
import json
import os
import platform

from .. import package_under_test, world
from .timing import Ratio

package_under_test.bind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sockets", type=int, default=90_000)
    parser.add_argument("--namespaces", type=int)
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", default="benchmarks.json")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without bytecode every start would compile the package
    world.enter_network()
    if options.plot:
        from .growth import measure_growth
        from .plot import svg

        with open(options.plot, "w", encoding="utf-8") as file:
            file.write(svg(measure_growth(options.sockets, options.rounds)))
        return
    times, ratios = _measured(options)
    machine = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        **({"namespaces": options.namespaces} if options.namespaces else {"sockets": options.sockets}),
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


def _measured(options: argparse.Namespace) -> tuple[dict[str, float], list[Ratio]]:
    """By what is measured in this mode."""
    from .crowd import Crowd  # only now does `socklb` mean the package under test
    from .everywhere import measure_everywhere
    from .held import measure_held
    from .measure import measure
    from .million import KILLS, measure_million
    from .namespaces import measure_namespaces
    from .tracked import measure_tracked

    if options.namespaces:
        return measure_namespaces(options.namespaces, options.rounds)
    with Crowd(options.sockets) as crowd:
        if options.sockets > 2 * KILLS:
            return measure_million(crowd, options.rounds)
        parts = [measure(crowd, options.rounds), measure_everywhere(max(1, options.rounds // 3))]
    parts += [measure_tracked(options.rounds), measure_held(options.rounds)]
    return {name: time for times, _ in parts for name, time in times.items()}, [
        r for _, ratios in parts for r in ratios
    ]


main()
