"""The shape of the code: imports point one way, and one module knows each secret."""

from __future__ import annotations

import ast
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gsplice

PACKAGE = Path(gsplice.__file__).parent
TESTS = Path(__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

#: From what knows nothing of gsplice to what knows most: a module imports from above itself only.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("_kernel", "_gevent", "_options", "_own_methods", "_addresses", "_systemd"),
    ("_output",),
    ("_account", "_connecting", "_reader", "_shutdown", "_ticks", "_turns", "_watchdog"),
    ("_pipe",),
    ("_hub", "_endpoint"),
    ("_body", "_chunked", "_direction", "_moderation"),
    ("_recognition", "_reading"),
    ("_pump", "_sendfile", "_methods", "_task"),
    ("_body_engine",),
    ("transfer",),
    ("relay", "_body_sender", "_wsgi"),
    ("_accepting", "_reset"),
    ("_forwarding", "_pywsgi", "takeover._imports", "takeover._replacements"),
    ("server",),
    (
        "pywsgi",
        "gunicorn",
        "takeover.socket",
        "takeover.shutil",
        "takeover.http",
        "takeover.pywsgi",
    ),
    ("takeover.urllib3", "takeover.gunicorn"),
    ("takeover", "_meter"),
    ("_plugin",),
    ("__init__",),
    ("demo",),  # a program of its own that uses the rest as anyone would
    ("cli",),
    ("__main__",),
)
LONGEST = 400


def name_of(path: str) -> str:
    """Return the name of a module within the package: ``takeover.socket``, ``_pump``."""
    name = path.removesuffix(".py").replace("/", ".")
    return name.removesuffix(".__init__") if name != "__init__" else name


def tree_of(path: str) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse((PACKAGE / path).read_text(encoding="utf-8"))


def imported(path: str) -> Iterator[str]:
    """Tell which modules of the package a module imports, wherever it does so."""
    names = {name_of(other) for other in MODULES}
    for node in ast.walk(tree_of(path)):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in found:
            package, _, rest = name.partition(".")
            if package != "gsplice":
                continue
            while rest and rest not in names:
                rest = rest.rpartition(".")[0]
            yield rest or "__init__"


def layer_of(name: str) -> int:
    """Return the number of the layer that a module belongs to."""
    for number, layer in enumerate(LAYERS):
        if name in layer:
            return number
    package, _, rest = name.partition(".")
    if rest:
        return layer_of({"takeover": "takeover.socket"}.get(package, package))
    pytest.fail(f"{name} has no place in the layers: give it one")


@pytest.mark.parametrize("path", MODULES)
def test_imports_point_one_way(path: str) -> None:
    importer = name_of(path)
    for name in imported(path):
        if not (importer.startswith("demo") and name.startswith("demo")):
            assert layer_of(name) < layer_of(importer), f"{importer} imports {name}"


@pytest.mark.parametrize("path", [path for path in MODULES if path.startswith("takeover/")])
def test_takeovers_know_nothing_of_each_other(path: str) -> None:
    if name_of(path) == "takeover":
        return  # it gathers them
    others = [name for name in imported(path) if name.startswith("takeover.")]
    others = [name for name in others if not name.startswith("takeover._")]  # what they share
    assert others == []


@pytest.mark.parametrize("path", MODULES)
def test_module_is_short(path: str) -> None:
    assert len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) <= LONGEST


def functions(path: str) -> Iterator[ast.FunctionDef]:
    """Return the functions of a module."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            yield node


def length(function: ast.FunctionDef) -> int:
    """Return the lines of code of a function: without its docstring, comments and gaps."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    lines = {
        number
        for statement in body
        for node in ast.walk(statement)
        if hasattr(node, "lineno")
        for number in (node.lineno, node.end_lineno)
    }
    return len(lines)


@pytest.mark.parametrize("path", MODULES)
def test_functions_are_short(path: str) -> None:
    long = {function.name: length(function) for function in functions(path)}
    assert {name: lines for name, lines in long.items() if lines > 40} == {}


def attributes(path: str) -> set[str]:
    """Return every attribute name that a module uses, `getattr` with a literal included."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr"):
            names.update(arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant))
    return names


def calls_of(path: str, module: str) -> set[str]:
    """Return which attributes of *module* a module uses, imported names included."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == module:
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == module:
            names.update(alias.name for alias in node.names)
    return names


SYSTEM_CALLS = {"splice", "sendfile", "pipe2", "pipe", "pread", "pwrite", "read", "write", "close"}
SYSTEM_CALLS |= {"fstat", "fcntl", "F_GETFL", "ioctl"}
GEVENT_SECRETS = {
    "_read_event",
    "_write_event",
    "_sslobj",
    "_check_sendfile_params",
    "cancel_wait",
    "cancel_waits_close_and_then",
}


@pytest.mark.parametrize("path", [path for path in MODULES if not path.startswith("demo/")])
def test_one_module_makes_the_system_calls(path: str) -> None:
    used = (calls_of(path, "os") | calls_of(path, "fcntl")) & SYSTEM_CALLS
    if name_of(path) == "_kernel":
        assert used >= {"splice", "sendfile", "pipe2"}
    else:
        assert used == set()


@pytest.mark.parametrize("path", MODULES)
def test_one_module_knows_what_gevent_keeps_to_itself(path: str) -> None:
    used = attributes(path) & GEVENT_SECRETS
    if name_of(path) == "_gevent":
        assert used >= {"_read_event", "_write_event", "_sslobj"}
    else:
        assert used == set()


@pytest.mark.parametrize("path", MODULES)
def test_splice_more_is_never_asked_for(path: str) -> None:
    assert "SPLICE_F_MORE" not in attributes(path)
    if name_of(path) == "_kernel":
        from gsplice import _kernel

        more = getattr(os, "SPLICE_F_MORE", 4)
        assert not _kernel._SPLICE_FLAGS & more


@pytest.mark.parametrize("path", MODULES)
def test_every_module_says_what_it_is(path: str) -> None:
    assert ast.get_docstring(tree_of(path))


def test_core_does_not_log() -> None:
    logging = {name_of(path) for path in MODULES if "logging" in (PACKAGE / path).read_text()}
    assert logging <= {"server", "_accepting", "cli", "_output"}


def test_everything_public_is_there() -> None:
    names = {
        "Relay",
        "RelayResult",
        "Stats",
        "Transfer",
        "TransferStopped",
        "can_splice",
        "copy",
        "is_patched",
        "patch_all",
        "patch_socket",
        "relay",
        "stats",
        "unpatch_all",
    }
    assert names <= set(gsplice.__all__)
    for name in gsplice.__all__:
        assert getattr(gsplice, name).__doc__, f"{name} says nothing"


def test_to_import_any_module_does_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    for path in MODULES:
        importlib.import_module(f"gsplice.{name_of(path)}")
    assert capfd.readouterr() == ("", "")


def test_the_page_on_reliability_names_tests_that_exist() -> None:
    names = set(re.findall(r"``(?:tests/)?(test_[a-z0-9_*]+)(?:\.py)?``", _text("RELIABILITY.rst")))
    assert len(names) > 20
    missing = [name for name in names if not list(TESTS.glob(f"{name}.py"))]
    assert not missing


def test_every_environment_of_tox_that_a_page_names_is_there() -> None:
    there = set(re.findall(r"^\[testenv:(\w+)\]", _text("setup.cfg"), re.MULTILINE))
    for page in ("RELIABILITY.rst", "README.rst"):
        named = set(re.findall(r"tox -e (\w+)", _text(page)))
        assert named <= there | {"py310", "py311", "py312", "py313"}


def _text(name: str) -> str:
    return (TESTS.parent / name).read_text(encoding="utf-8")
