"""Follow a list of live backends that comes as lines, one whole list a line, and cut those that have gone.

    my-controller | python3 follow_backends.py

with lines such as `10.0.0.5:80/TCP 10.0.0.6:80/TCP`.
"""

import sys
import threading

from socklb import Backend, BackendTable, TerminationLoop


def main() -> int:
    table = BackendTable()
    loop = TerminationLoop(table, on_pass=lambda done: print(*done.backends, done.report, flush=True))
    worker = threading.Thread(target=loop.run)
    worker.start()
    try:
        for line in sys.stdin:
            table.replace([(Backend.parse(text),) for text in line.split()])
    finally:
        loop.finish()  # what has gone down by now is still cut
        worker.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
