"""Takeovers are turned on and off as a whole, wait for imports, and leave what they do not know."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from gevent import pywsgi, socket
from peers import run_alone

import gsplice

NAMES = ("socket", "shutil", "http", "pywsgi", "gunicorn")
ROOT = Path(__file__).resolve().parents[1]


def everything() -> dict[str, dict[str, Any]]:
    """Return all attributes of all that is taken over."""
    import http.client
    import shutil

    import gunicorn.http.wsgi

    owners = [
        socket.socket,
        shutil,
        http.client,
        *(thing for thing in vars(http.client).values() if isinstance(thing, type)),
        pywsgi,
        *(thing for thing in vars(pywsgi).values() if isinstance(thing, type)),
        gunicorn.http.wsgi,
        *(thing for thing in vars(gunicorn.http.wsgi).values() if isinstance(thing, type)),
    ]
    return {str(owner): dict(vars(owner)) for owner in owners}


def changed(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> set[str]:
    """Return the names of what is another object now."""
    return {
        name
        for owner, attributes in before.items()
        for name in attributes.keys() | after[owner].keys()
        if attributes.get(name) is not after[owner].get(name)
    }


def test_every_original_is_back_by_identity() -> None:
    before = everything()
    gsplice.patch_all()
    gsplice.patch_all()
    assert changed(before, everything()) == {
        *("sendall", "sendfile", "copyfileobj", "send", "_send_output"),
        *("get_environ", "process_result", "write_file"),
    }
    gsplice.unpatch_all()
    assert changed(before, everything()) == set()
    gsplice.unpatch_all()


@pytest.mark.parametrize("name", NAMES)
def test_one_alone(name: str) -> None:
    getattr(gsplice, f"patch_{name}")()
    assert [other for other in NAMES if gsplice.is_patched(other)] == [name]
    gsplice.patch_all(**dict.fromkeys(NAMES, False))
    assert [other for other in NAMES if gsplice.is_patched(other)] == [name]
    gsplice.patch_all(**(dict.fromkeys(NAMES, False) | {"shutil": True}))
    assert {other for other in NAMES if gsplice.is_patched(other)} == {name, "shutil"}
    gsplice.unpatch_all()
    assert not any(map(gsplice.is_patched, NAMES))


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="no takeover is named 'sockets'; there are: socket, "):
        gsplice.is_patched("sockets")


def turn_on_before_the_libraries_are_there() -> None:
    """Patch first and import later, in a process of its own."""
    import gsplice

    late = ("http.client", "gevent.pywsgi", "gunicorn", "urllib3", "requests")
    found = [name for name in late if name in sys.modules]
    gsplice.patch_all()
    assert [name for name in late if name in sys.modules] == found
    assert all(map(gsplice.is_patched, NAMES))
    import http.client

    import gevent.pywsgi
    import gunicorn.http.wsgi

    for module, function in (
        (http.client, http.client.HTTPConnection.send),
        (gevent.pywsgi, gevent.pywsgi.WSGIHandler.process_result),
        (gunicorn.http.wsgi, gunicorn.http.wsgi.Response.write_file),
    ):
        assert function.__wrapped__, module
        assert module.__loader__ is module.__spec__.loader
        assert not type(module.__loader__).__module__.startswith("gsplice")
    gsplice.unpatch_all()
    assert not hasattr(http.client.HTTPConnection.send, "__wrapped__")
    assert not any(type(finder).__module__.startswith("gsplice") for finder in sys.meta_path)
    assert not gsplice.stats().fallbacks
    print("done")


def turn_off_before_the_libraries_are_there() -> None:
    """Patch, unpatch, and import only then."""
    import gsplice

    gsplice.patch_all()
    gsplice.unpatch_all()
    import gunicorn.http.wsgi

    assert not hasattr(gunicorn.http.wsgi.Response.write_file, "__wrapped__")
    print("done")


@pytest.mark.parametrize(
    "scenario", [turn_on_before_the_libraries_are_there, turn_off_before_the_libraries_are_there]
)
def test_libraries_that_are_imported_later(scenario: Any) -> None:
    assert run_alone(scenario) == "done\n"


@pytest.mark.parametrize(
    ("name", "where", "attribute"),
    [
        ("pywsgi", "gevent.pywsgi:WSGIHandler", "process_result"),
        ("pywsgi", "gevent.pywsgi:WSGIHandler", "get_environ"),
        ("shutil", "shutil", "copyfileobj"),
        ("socket", "gevent.socket:socket", "sendfile"),
        ("http", "http.client:HTTPConnection", "_send_output"),
        ("gunicorn", "gunicorn.http.wsgi:Response", "write_file"),
    ],
)
@pytest.mark.parametrize("instead", [None, lambda one, two, three, four: None, 5])
def test_a_library_that_is_not_as_expected_is_left_alone_and_counted(
    monkeypatch: pytest.MonkeyPatch, name: str, where: str, attribute: str, instead: Any
) -> None:
    owner = pkgutil.resolve_name(where)  # imported here: other tests need it to be imported late
    if instead is None:
        monkeypatch.delattr(owner, attribute)
    else:
        monkeypatch.setattr(owner, attribute, instead)
    before, counted = dict(vars(owner)), sum(gsplice.stats().fallbacks.values())
    getattr(gsplice, f"patch_{name}")()
    assert dict(vars(owner)) == before
    assert sum(gsplice.stats().fallbacks.values()) == counted + 1
    assert not gsplice.is_patched(name)
    gsplice.unpatch_all()
    assert dict(vars(owner)) == before


class Elsewhere:
    """A response of a gunicorn that keeps its count of bytes elsewhere."""

    def __init__(self, req: Any, sock: Any, cfg: Any) -> None:
        self.req, self.sock, self.cfg = req, sock, cfg
        self.chunked, self.response_length = False, None
        self.count = 0

    def write(self, arg: bytes) -> None:
        """Write."""

    def can_sendfile(self) -> bool:
        """Say so."""
        return True

    def write_file(self, respiter: Any) -> None:
        """Write the blocks."""


def test_a_library_that_has_moved_what_is_used_besides_is_left_alone_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import http.client

    import gunicorn.http.wsgi

    monkeypatch.delattr(pywsgi.WSGIHandler, "_sendall")
    monkeypatch.delattr(pywsgi.WSGIHandler, "__init__")
    monkeypatch.delattr(http.client.HTTPConnection, "auto_open")
    monkeypatch.setattr(gunicorn.http.wsgi, "Response", Elsewhere)
    before = everything()
    counted = sum(gsplice.stats().fallbacks.values())
    gsplice.patch_all(socket=False, shutil=False)
    assert changed(before, everything()) == set()
    assert sum(gsplice.stats().fallbacks.values()) == counted + 3
    assert not any(map(gsplice.is_patched, NAMES))


def find_before_the_import() -> None:
    """Ask where a library is that is taken over later, in a process of its own."""
    gsplice.patch_all()
    spec = importlib.util.find_spec("gunicorn.http.wsgi")
    assert spec is not None
    loader: Any = spec.loader
    assert loader.get_code("gunicorn.http.wsgi").co_filename == spec.origin
    assert "class Response" in loader.get_source("gunicorn.http.wsgi")
    assert not loader.is_package("gunicorn.http.wsgi")
    assert "gunicorn.http.wsgi" not in sys.modules
    gsplice.unpatch_all()
    print("found")


def test_a_library_can_be_looked_for_before_it_is_imported() -> None:
    assert run_alone(find_before_the_import) == "found\n"


@pytest.fixture
def other_gunicorn(tmp_path: Path) -> Path:
    """Make a package that is called gunicorn, and has no module ``http.wsgi``."""
    (tmp_path / "gunicorn" / "http").mkdir(parents=True)
    for package in ("gunicorn", "gunicorn/http"):
        (tmp_path / package / "__init__.py").touch()
    return tmp_path


def import_what_is_not_there() -> None:
    """Import a module for which a takeover waits, in a process of its own."""
    gsplice.patch_all()
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'gunicorn.http.wsgi'"):
        import gunicorn.http.wsgi  # noqa: F401
    assert gsplice.is_patched("gunicorn"), "it still waits"
    gsplice.unpatch_all()
    print("done")


def test_a_library_that_is_not_there_is_missed_as_without_a_takeover(other_gunicorn: Path) -> None:
    assert run_alone(import_what_is_not_there, other_gunicorn) == "done\n"


def import_a_mere_directory() -> None:
    """Import a package without an ``__init__``, which has no loader when it is found."""
    gsplice.patch_all()
    import gunicorn.http.wsgi

    assert not hasattr(gunicorn.http.wsgi, "Response")
    assert gsplice.is_patched("gunicorn"), "it still waits"
    gsplice.unpatch_all()
    print("done")


def test_a_directory_of_the_librarys_name_is_left_alone(other_gunicorn: Path) -> None:
    (other_gunicorn / "gunicorn" / "http" / "wsgi").mkdir()
    assert run_alone(import_a_mere_directory, other_gunicorn) == "done\n"


def loaded_by_hand(name: str, before: Callable[[], None] = lambda: None) -> ModuleType:
    """Load a module as some tools do: found, made and run, with no word to the import system."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = ModuleType(name)
    before()
    spec.loader.exec_module(module)
    return module


def load_by_hand() -> None:
    """Load a library beside the import system, in a process of its own."""
    gsplice.patch_all()
    module = loaded_by_hand("gunicorn.http.wsgi")
    assert module.Response.write_file.__wrapped__
    gsplice.unpatch_all()
    assert not hasattr(module.Response.write_file, "__wrapped__")
    gsplice.patch_all()
    module = loaded_by_hand("gunicorn.http.wsgi", before=gsplice.unpatch_all)
    assert not hasattr(module.Response.write_file, "__wrapped__"), "it was turned off meanwhile"
    assert not gsplice.is_patched("gunicorn")
    print("done")


def test_a_library_that_is_loaded_by_hand_is_taken_over_as_well() -> None:
    assert run_alone(load_by_hand) == "done\n"


# The plugin, as gevent finds it in an installed package.

PROGRAM = """
from gevent import monkey
monkey.patch_all({arguments})
import sys
gsplice = sys.modules.get("gsplice")
print(bool(gsplice) and all(map(gsplice.is_patched, {names})))
"""


@pytest.fixture
def installed_path(tmp_path: Path) -> str:
    """Return a search path on which gsplice is as good as installed, entry points included."""
    try:
        importlib.metadata.distribution("gsplice")
    except importlib.metadata.PackageNotFoundError:
        options = ConfigParser()
        options.read(ROOT / "setup.cfg")
        information = tmp_path / "gsplice-0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: gsplice\nVersion: 0\n")
        points = options["options.entry_points"]
        (information / "entry_points.txt").write_text(
            "".join(f"[{group}]\n{points[group].strip()}\n" for group in points)
        )
    return os.pathsep.join((str(tmp_path), str(Path(gsplice.__file__).parents[1])))


def said_by(path: str, *command: str, **environment: str) -> str:
    """Run Python with *command*; return what it printed."""
    clean = {name: value for name, value in os.environ.items() if name != "GSPLICE"}
    done = subprocess.run(
        [sys.executable, *command],
        env={**clean, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "on"),
    [
        ("", {}, False),
        ("", {"GSPLICE": "0"}, False),
        ("", {"GSPLICE": ""}, False),
        ("", {"GSPLICE": "1"}, True),
        ("", {"GSPLICE": "True"}, True),
        ("", {"GSPLICE": "false"}, False),
        ("", {"GSPLICE": "off"}, False),
        ("gsplice=True", {}, True),
        ("gsplice=False", {"GSPLICE": "1"}, False),
        ("gsplice=True, socket=False", {}, True),
    ],
)
def test_plugin(installed_path: str, arguments: str, environment: dict[str, str], on: bool) -> None:
    program = PROGRAM.format(arguments=arguments, names=NAMES)
    assert said_by(installed_path, "-c", program, **environment) == f"{on}\n"


@pytest.mark.parametrize("setting", ["1", "0"])
def test_plugin_with_python_m_gevent_monkey(
    installed_path: str, tmp_path: Path, setting: str
) -> None:
    (tmp_path / "app.py").write_text("import gsplice\nprint(gsplice.is_patched('http'))\n")
    said = said_by(installed_path, "-m", "gevent.monkey", str(tmp_path / "app.py"), GSPLICE=setting)
    assert said == f"{setting == '1'}\n"


def test_plugin_never_raises_into_patch_all(installed_path: str) -> None:
    broken = "import gsplice.takeover as t\nt.patch_all = lambda: 1 / 0\n" + PROGRAM
    said = said_by(installed_path, "-c", broken.format(arguments="gsplice=True", names=NAMES))
    assert "ZeroDivisionError" in said
    assert "False\n" in said
