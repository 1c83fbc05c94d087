"""Destroy what is connected to a backend in every network namespace, and say what became of each socket.

python3 cut_backend.py 10.0.0.5:5432/TCP
"""

import sys

from socklb import Backend, NotPermitted, terminate_connections


def main() -> int:
    try:
        report = terminate_connections([Backend.parse(text) for text in sys.argv[1:]])
    except NotPermitted as error:
        print(error.strerror, file=sys.stderr)
        return 1
    for outcome in report.outcomes:
        socket = outcome.socket
        print(f"{outcome.namespace.name}: {socket.src}:{socket.sport} {outcome.verdict} {outcome.reason}".rstrip())
    for namespace, failure in report.errors.items():
        print(f"{namespace.name} was not searched: {failure}", file=sys.stderr)
    return 1 if report.failed or report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
