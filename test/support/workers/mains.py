"""Main functions for `ChildProcess`, in place of the worker's."""

import os
import socket
import sys
import time
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Do what the second argument says; the first is the socket's descriptor."""
    descriptor, behaviour = int(arguments[0]), arguments[1]
    if behaviour == "closes":
        os.close(descriptor)
        time.sleep(600)
    if behaviour == "last words":
        for number in range(5):
            os.write(descriptor, str(number).encode())
        sys.exit(4)
    connection = socket.socket(fileno=descriptor)
    while packet := connection.recv(100):
        connection.send(packet[::-1])
