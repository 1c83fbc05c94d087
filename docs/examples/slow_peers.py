"""Show the connections to a port whose round trips are slow, by the kernel's own measurements.

python3 slow_peers.py 5432 0.2
"""

import sys

from socklb import InetSocket, SocketFilter, dport, find_sockets


def round_trip(socket: InetSocket) -> float:
    """Smoothed round-trip time in seconds (tcpi_rtt, microseconds)."""
    return float(socket.attributes["info"].rtt) / 1_000_000


def main() -> int:
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    connected = SocketFilter("tcp", dport(port), states="established")
    for socket in find_sockets(connected, extensions=["info"]):
        if round_trip(socket) >= seconds:
            print(f"{socket.dst}:{socket.dport} {round_trip(socket) * 1000:.1f} ms, inode {socket.inode}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
