"""A chaos test without root, proxies or packet filters: reset one's own connection in the middle of its work.

unshare -rn sh -c 'ip link set lo up; python3 reset_in_a_test.py'
"""

import socket

from socklb import SocketFilter, destroy_sockets


def main() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    address, port = server.getsockname()
    client = socket.create_connection((address, port))
    peer, _ = server.accept()

    destroy_sockets(SocketFilter.to_backend(address, port, "tcp"))

    try:
        client.recv(1)
    except ConnectionAbortedError:
        print("the client got ECONNABORTED, and can reconnect")
    for each in (server, client, peer):
        each.close()


if __name__ == "__main__":
    main()
