"""Three hosts on two Ethernet links: network namespaces, joined by veth pairs.

Invariant: a namespace lives as long as a process in it, and the process that keeps it ends when its
standard input does. So nothing has to be torn down: whatever becomes of the bench, the kernel takes
namespaces, links and addresses away with the last process.

The links have the MTU of Ethernet, and segmentation offload is off: what passes them is packets of
1,500 bytes, as on a wire, not the 64 KiB that loopback passes in one piece.
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.processes import LineProcess, ProcessFailed

CLIENT_HOST, RELAY_HOST, BACKEND_HOST = "client", "relay", "backend"
TOOLS = ("unshare", "nsenter", "ip", "ethtool")
SETUP_SECONDS = 20.0

KEEP = "echo ready; exec cat"  # until the end of its standard input
LINK = """
ip link set lo up
ip link add {link} mtu 1500 type veth peer name wire mtu 1500 netns {pid}
ip addr add 10.77.{number}.1/24 dev {link}
ip link set {link} up
ethtool -K {link} tso off gso off gro off
"""
# In the other host, which reaches its neighbour and nothing else.
OTHER_END = """
ip link set lo up
ip addr add 10.77.{number}.2/24 dev wire
ip link set wire up
ethtool -K wire tso off gso off gro off
"""


@dataclass(frozen=True)
class Host:
    """A namespace: the command that runs another one there, and the host's own address."""

    prefix: tuple[str, ...]
    address: str


@contextmanager
def hosts_on_veth() -> Iterator[Mapping[str, Host]]:
    """The client's and the backend's link both end at the relay's host."""
    with ExitStack() as stack:
        owner = _owner(stack)
        pids = {name: _keep(stack, owner) for name in (CLIENT_HOST, RELAY_HOST, BACKEND_HOST)}
        prefixes = {name: _inside(pid, owner) for name, pid in pids.items()}
        for number, name in ((1, CLIENT_HOST), (2, BACKEND_HOST)):
            _run(
                prefixes[RELAY_HOST], LINK.format(link=f"to-{name}", number=number, pid=pids[name])
            )
            _run(prefixes[name], OTHER_END.format(number=number))
        yield {
            CLIENT_HOST: Host(prefixes[CLIENT_HOST], "10.77.1.2"),
            RELAY_HOST: Host(prefixes[RELAY_HOST], "10.77.1.1"),
            BACKEND_HOST: Host(prefixes[BACKEND_HOST], "10.77.2.2"),
        }


@functools.cache
def why_no_hosts() -> str:
    """Why they cannot be had on this machine; nothing if they can."""
    for tool in TOOLS:
        if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"{tool} is not installed"
    try:
        with hosts_on_veth():
            return ""
    except (ProcessFailed, subprocess.SubprocessError) as error:
        return f"network namespaces cannot be made: {error}"


def _owner(stack: ExitStack) -> tuple[str, ...]:
    """What lets somebody who is not root make them: a user namespace, in which he is."""
    if os.geteuid() == 0:
        return ()
    keeper = LineProcess(["unshare", "--user", "--map-root-user", "sh", "-c", KEEP])
    stack.enter_context(keeper).wait_until_ready()
    return ("nsenter", "--user", "--preserve-credentials", f"--target={keeper.pid}")


def _keep(stack: ExitStack, owner: tuple[str, ...]) -> int:
    keeper = stack.enter_context(LineProcess([*owner, "unshare", "--net", "sh", "-c", KEEP]))
    keeper.wait_until_ready()
    return keeper.pid


def _inside(pid: int, owner: tuple[str, ...]) -> tuple[str, ...]:
    return (*owner, "nsenter", f"--net=/proc/{pid}/ns/net")


def _run(prefix: tuple[str, ...], script: str) -> None:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(
        [*prefix, "sh", "-ec", script],
        env=environment,
        timeout=SETUP_SECONDS,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ProcessFailed(done.stderr.strip() or f"{script.strip()} failed")
