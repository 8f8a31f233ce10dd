"""Real clients against the reverse proxy of the examples, in front of nginx."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from programs import PATIENCE, REPOSITORY, Program, installed, run, wait_until
from test_real_programs import MIB, Nginx, downloaded, nginx, sockets, write_random_file

__all__ = ["nginx", "sockets"]  # fixtures

EXAMPLE = REPOSITORY / "examples" / "wsgi_reverse_proxy.py"
CURL = ("-qfsS", "--noproxy", "*", "--max-time", "60")


class Front(NamedTuple):
    """The proxy, and the directory of the files that nginx serves behind it."""

    url: str
    files: Path
    program: Program


@pytest.fixture(scope="module")
def front(nginx: Nginx) -> Iterator[Front]:
    """Run the proxy in front of nginx."""
    with Program(sys.executable, EXAMPLE, "127.0.0.1:0", nginx.targets["tcp"]) as program:
        address = program.expect(r"listening on (\S+)")[1]
        yield Front(f"http://{address}", nginx.files, program)
        program.stop()
        assert "Traceback" not in program.output


@pytest.mark.timeout(240)  # a gigabyte is written, read and hashed: slow machines take their time
def test_curl_downloads_a_gigabyte_with_its_checksum_right(front: Front) -> None:
    size = 1_000_000_007
    try:
        checksum = write_random_file(front.files / "large", size)
        assert downloaded(f"{front.url}/large") == (size, checksum)
    finally:
        (front.files / "large").unlink()


@pytest.mark.parametrize("ranges", ["0-0", "5-1999999", "-70000", "100-199,300000-2500000"])
def test_curl_gets_the_ranges_that_it_asks_for(front: Front, ranges: str, tmp_path: Path) -> None:
    write_random_file(front.files / "file", 3 * MIB)
    body = (front.files / "file").read_bytes()
    got = tmp_path / "got"
    run(installed("curl"), *CURL, "-r", ranges, "-o", got, f"{front.url}/file")
    if "," in ranges:
        for start, end in (map(int, pair.split("-")) for pair in ranges.split(",")):
            assert body[start : end + 1] in got.read_bytes()
    else:
        start, end = (int(number or -1) for number in ranges.split("-"))
        assert got.read_bytes() == (body[-end:] if start < 0 else body[start : end + 1])


def test_curl_asks_for_the_head_alone(front: Front) -> None:
    write_random_file(front.files / "file", MIB)
    head = run(installed("curl"), *CURL, "-I", f"{front.url}/file", f"{front.url}/file")
    assert head.count("HTTP/1.1 200") == 2
    assert head.count(f"Content-Length: {MIB}") == 2


def test_curl_may_be_slow(front: Front) -> None:
    expected = 2 * MIB, write_random_file(front.files / "file", 2 * MIB)
    assert downloaded("--limit-rate", "2M", f"{front.url}/file") == expected


def test_curl_goes_away_in_the_middle_and_nothing_stays_behind(front: Front) -> None:
    write_random_file(front.files / "file", 30 * MIB)
    expected = MIB, write_random_file(front.files / "small", MIB)
    assert downloaded(f"{front.url}/small") == expected
    before = front.program.open_files()
    for _ in range(5):
        command = installed("curl"), *CURL, f"{front.url}/file"
        with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            assert curl.stdout.read(MIB)
            curl.kill()
    pooled = 2 * 5  # fds of pipes that five transfers at once may have left in the pool
    wait_until(lambda: front.program.open_files() <= before + pooled, f"{before} files again")
    assert downloaded(f"{front.url}/small") == expected


def test_curl_uploads(front: Front, tmp_path: Path) -> None:
    write_random_file(tmp_path / "upload", 5 * MIB)
    # nginx serves files and takes none: it refuses, having been sent the body or not.
    status = run(
        *(installed("curl"), "-qsS", "--noproxy", "*", "--max-time", "60", "-o", "/dev/null"),
        *("-w", "%{http_code}", "-T", tmp_path / "upload", f"{front.url}/file"),
    )
    assert status in ("405", "413", "502")


@pytest.mark.parametrize("size", [1024, 100_000])
def test_ab_h2load_and_wrk_see_no_failed_request(front: Front, size: int) -> None:
    write_random_file(front.files / "file", size)
    url = f"{front.url}/file"
    said = run(installed("ab"), "-q", "-k", "-c", "8", "-n", "400", url)
    assert re.search(r"Complete requests:\s+400\n", said)
    assert re.search(r"Failed requests:\s+0\n", said)
    assert "Non-2xx" not in said
    said = run(installed("h2load"), "--h1", "-c", "8", "-n", "400", url)
    assert "400 succeeded, 0 failed, 0 errored, 0 timeout" in said
    said = run(installed("wrk"), "-c", "8", "-t", "1", "-d", "1", url, seconds=PATIENCE)
    assert re.search(r"\d+ requests in", said)
    assert "Socket errors" not in said
    assert "Non-2xx" not in said
