"""A cable that loses, doubles and reorders frames: ``python lossy_wire.py SEED DEVICE DEVICE``.

It carries each frame from one device to the other by hand. That needs no more of the kernel than
packet sockets, where ``tc netem`` is a module that many kernels lack, and the same seed gives the
same faults for the same frames.
"""

from __future__ import annotations

import collections
import random
import select
import socket
import sys

#: Of so many frames one is lost, one sent twice, and one overtaken by those behind it.
LOST = 50
DOUBLED = 50
OVERTAKEN = 25
#: So many frames overtake it, or as many as come in so many seconds.
FRAMES_AHEAD = 8
LONGEST = 0.01

# linux/if_packet.h, linux/if_ether.h
PACKET_OUTGOING = 4
ETH_P_ALL = 3


class End:
    """One device, and the frames that are held back on their way out of it."""

    def __init__(self, device: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.socket.bind((device, ETH_P_ALL))
        self.held: collections.deque[list] = collections.deque()  # [frames to wait for, frame]

    def send(self, frame: bytes) -> None:
        self.socket.send(frame)
        for entry in self.held:
            entry[0] -= 1
        while self.held and self.held[0][0] <= 0:
            self.socket.send(self.held.popleft()[1])

    def hold(self, frame: bytes) -> None:
        self.held.append([FRAMES_AHEAD, frame])

    def flush(self) -> None:
        while self.held:
            self.socket.send(self.held.popleft()[1])


def carry(chance: random.Random, source: End, sink: End) -> None:
    frame, (_, _, kind, *_) = source.socket.recvfrom(65536)
    if kind == PACKET_OUTGOING or not chance.randrange(LOST):
        return
    if not chance.randrange(OVERTAKEN):
        sink.hold(frame)
        return
    sink.send(frame)
    if not chance.randrange(DOUBLED):
        sink.send(frame)


def main(seed: str, *devices: str) -> None:
    chance = random.Random(int(seed))
    one, other = (End(device) for device in devices)
    ends = {one.socket.fileno(): (one, other), other.socket.fileno(): (other, one)}
    poller = select.poll()
    for number in ends:
        poller.register(number, select.POLLIN)
    print("ready", flush=True)
    while True:
        ready = poller.poll(LONGEST * 1000)
        for number, _ in ready:
            carry(chance, *ends[number])
        if not ready:
            one.flush()
            other.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
