"""``python -m bench pictures FILE... -o DIR``: pictures of the figures that ``--json`` wrote.

Each picture is drawn from the regimes that the files have; one for which there are none is left
out. Points are medians of the rounds.
"""

import argparse
import importlib.util
import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.command_line import add_choice_option, matching, parser_of
from bench.contenders import all_contenders
from bench.report import BASELINE
from bench.styles import SIZE, finish, hide_frame, name_powers, plain, style_of
from bench.values import folder_to_fill

# What the JSON has for a regime, as bench/report.py writes it.
Figures = Mapping[str, Any]
Curve = tuple[Sequence[float], Sequence[float]]

WRITE_SIZES = re.compile(r"one-way-\d+k")
SEGMENT_SIZES = re.compile(r"one-way-\d+k-nodelay")
MESSAGES_AT_SCALE = re.compile(r"ping-pong-256(-x\d+)?")
BYTES_AT_SCALE = re.compile(r"one-way-16k(-x\d+)?")
MANY_TIMES = 500  # the lowest value: no room for more than powers of ten below the axis
RARITY_TICKS = {0.5: "50", 0.9: "90", 0.99: "99", 0.999: "99.9", 0.9999: "99.99"}


@dataclass(frozen=True)
class Panel:
    """One pair of axes, with a curve for each contender."""

    title: str
    x_label: str
    y_label: str
    curves: Mapping[str, Curve]
    log_y: bool = True


def parser() -> argparse.ArgumentParser:
    options = parser_of("pictures", "Pictures of what was measured.")
    options.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of --json")
    options.add_argument(
        "-o", "--output", type=folder_to_fill, default=Path(), metavar="DIR", help="(default: here)"
    )
    add_choice_option(options, "contender")
    return options


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    check_matplotlib()
    regimes: dict[str, Figures] = {}
    memory: dict[str, Any] = {}
    for path in options.files:
        try:
            figures = json.loads(path.read_text())
            regimes.update(figures.get("regimes", {}))
            memory.update(figures.get("memory", {}))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            parser().error(f"{path} has no figures: {error}")
    if not draw(regimes, memory, options.output, options.contender):
        parser().error("there is nothing to draw in what was measured")
    return 0


def check_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("pictures need matplotlib: python -m pip install -e '.[bench]'")


def draw(
    regimes: Mapping[str, Figures],
    memory: Mapping[str, Any],
    folder: Path,
    patterns: Sequence[str] | None = None,
) -> list[Path]:
    """Every picture that there are figures for; the names of the files are printed."""
    drawn = []
    names = matching(_names(regimes, memory), patterns)
    for name, figure in _all_pictures(regimes, memory, names):
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=120, bbox_inches="tight")
        print(path)
        drawn.append(path)
    return drawn


def _names(regimes: Mapping[str, Figures], memory: Mapping[str, Any]) -> list[str]:
    """The contenders that there are figures of: those of the bench in their order, then others."""
    measured = {name for figures in regimes.values() for name in figures["contenders"]} | {*memory}
    known = [one.name for one in all_contenders() if one.name in measured]
    return [*known, *sorted(measured.difference(known))]


def _all_pictures(
    regimes: Mapping[str, Figures], memory: Mapping[str, Any], names: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    for name, pattern, title in (
        ("write-size", WRITE_SIZES, "One connection, written to without a pause"),
        ("write-size-nodelay", SEGMENT_SIZES, "One connection, each write a segment of its own"),
    ):
        of_size = _matching(regimes, pattern)
        if len(of_size) > 1:
            yield name, _panels(title, _by_size(of_size, names))
    if scale := list(_scale(regimes, names)):
        yield "scale", _panels("Relays at the same time", scale)
    for name, figures in regimes.items():
        if curves := _distributions(figures, names):
            yield f"latency-{name}", _panels(f"Latency: {name}", [_latency_panel(curves)])
    compared = {name: of for name, of in regimes.items() if BASELINE in of["contenders"]}
    if compared:
        yield "overview", _overview(compared, names)
    if memory:
        yield "memory", _memory(memory, names)


def _matching(regimes: Mapping[str, Figures], pattern: re.Pattern[str]) -> list[Figures]:
    return [figures for name, figures in regimes.items() if pattern.fullmatch(name)]


def _curves(
    found: Sequence[Figures], names: Sequence[str], x: str, y: str, scale: float
) -> dict[str, Curve]:
    """A point for each regime in which the contender was measured."""
    curves: dict[str, Curve] = {}
    for name in names:
        points = {
            figures[x]: figures["contenders"][name][y] * scale
            for figures in found
            if name in figures["contenders"]
        }
        if points:
            xs, ys = zip(*sorted(points.items()), strict=True)
            curves[name] = (xs, ys)
    return curves


def _by_size(found: Sequence[Figures], names: Sequence[str]) -> list[Panel]:
    in_kib = [{**figures, "kib": figures["size"] / 1024} for figures in found]
    rates = _curves(in_kib, names, "kib", "rate", 1e-6)
    costs = _curves(in_kib, names, "kib", "cost", 1e9)
    label = "size of a write, KiB"
    return [
        Panel("Rate (higher is better)", label, "MB/s", rates, log_y=False),
        Panel("CPU of the relay (lower is better)", label, "CPU seconds per GB", costs),
    ]


def _scale(regimes: Mapping[str, Figures], names: Sequence[str]) -> Iterator[Panel]:
    for pattern, title, label, factor in (
        (MESSAGES_AT_SCALE, "CPU of a message of 256 bytes", "CPU µs per message", 1e6),
        (BYTES_AT_SCALE, "CPU of writes of 16 KiB", "CPU seconds per GB", 1e9),
    ):
        found = _matching(regimes, pattern)
        if len(found) > 1:
            curves = _curves(found, names, "connections", "cost", factor)
            yield Panel(f"{title} (lower is better)", "connections", label, curves)


def _distributions(figures: Figures, names: Sequence[str]) -> dict[str, Curve]:
    """Latency in µs against how rare it is: the median round for each share."""
    curves: dict[str, Curve] = {}
    for name in names:
        rounds = figures["contenders"].get(name, {}).get("rounds", {}).values()
        tables = [dict(map(tuple, one["quantiles"])) for one in rounds if one.get("quantiles")]
        if tables:
            shares = [share for share in tables[0] if share < 1]
            middle = [statistics.median(table[share] for table in tables) for share in shares]
            xs = [1 / (1 - share) for share in shares]
            curves[name] = (xs, [latency * 1e6 for latency in middle])
    return curves


def _latency_panel(curves: Mapping[str, Curve]) -> Panel:
    return Panel(
        "From sending until all is back (lower is better)", "percentile", "latency, µs", curves
    )


def _panels(title: str, panels: Sequence[Panel]) -> Any:
    from matplotlib.figure import Figure

    width, height = SIZE
    figure = Figure(figsize=(width * len(panels), height))
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.02, ha="left")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel)
    finish(figure, axes)
    return figure


def _draw_panel(axis: Any, panel: Panel) -> None:
    for name, (xs, ys) in panel.curves.items():
        axis.plot(xs, ys, label=name, **style_of(name))
    axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label, xscale="log")
    if panel.x_label == "percentile":
        ticks = [1 / (1 - share) for share in RARITY_TICKS]
        axis.set_xticks(ticks, list(RARITY_TICKS.values()))
    else:
        ticks = sorted({x for xs, _ in panel.curves.values() for x in xs})
        axis.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axis.minorticks_off()
    if panel.log_y:
        axis.set_yscale("log")
        name_powers(axis.yaxis)
    else:
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(plain)
    hide_frame(axis)


def _overview(regimes: Mapping[str, Figures], names: Sequence[str]) -> Any:
    """Every regime is a line of points, a point for each contender."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 2 + 0.5 * len(regimes)))
    figure.suptitle("Beside the gevent loop", fontsize=13, fontweight="bold", x=0.02, ha="left")
    axes = figure.subplots(1, 2, sharey=True)
    _draw_ratios(axes[0], regimes, names, "times the rate")
    _draw_ratios(axes[1], regimes, names, "times less cpu")
    axes[0].set_yticks(range(len(regimes)), list(regimes))
    axes[0].set_ylim(len(regimes) - 0.4, -0.6)
    finish(figure, axes)
    return figure


def _draw_ratios(
    axis: Any, regimes: Mapping[str, Figures], names: Sequence[str], field: str
) -> None:
    for number, name in enumerate(names):
        # A little above or below its line: many have nearly the same ratio.
        aside = 0.5 * (number / len(names) - 0.5)
        points = [
            (figures["contenders"][name][field], line + aside)
            for line, figures in enumerate(regimes.values())
            if figures["contenders"].get(name, {}).get(field)
        ]
        if points:
            xs, ys = zip(*points, strict=True)
            axis.plot(xs, ys, label=name, **{**style_of(name), "linestyle": "none"})
    axis.set(title=f"{field.replace('cpu', 'CPU')} (higher is better)", xscale="log")
    name_powers(axis.xaxis)
    hide_frame(axis)
    axis.axvline(1, color="black", linewidth=0.8, zorder=1)


def _memory(memory: Mapping[str, Any], names: Sequence[str]) -> Any:
    """What an idle relay holds."""
    from matplotlib.figure import Figure

    rows = [
        (
            statistics.median(one["rss_each"] for one in memory[name]) / 1024,
            statistics.median(one["fds_each"] for one in memory[name]),
            name,
        )
        for name in names
        if memory.get(name)
    ]
    rows.sort(reverse=True)
    figure = Figure(figsize=(SIZE[0], 1.2 + 0.34 * len(rows)))
    axis = figure.subplots()
    for line, (size, fds, name) in enumerate(rows):
        axis.plot(size, line, **style_of(name))
        words = f"{size:,.1f} KB, {fds:.3g} fds"
        axis.annotate(words, (size, line), (8, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(rows)), [name for _, _, name in rows])
    axis.set(title="An idle relay (lower is better)", xlabel="RSS, KB of 1,024 bytes", xscale="log")
    axis.set_xlim(right=5 * max(size for size, _, _ in rows))  # room for the words
    low, high = axis.get_xlim()
    name_powers(axis.xaxis, alone=high > MANY_TIMES * low)
    hide_frame(axis)
    return figure
