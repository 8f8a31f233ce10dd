"""How pictures look: one colour for a family of contenders, one marker for each of its members.

The colours are those of Okabe and Ito, which the colour-blind can tell apart; nothing is told by
colour alone.
"""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

SIZE = (7.2, 5.4)  # inches, of a pair of axes

# Without yellow, which is too pale for a line on white.
BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
VERMILION, PURPLE, BLACK, GREY = "#D55E00", "#CC79A7", "#000000", "#777777"
BROWN, NAVY = "#8C6D31", "#003B5C"

SOLID, DASHED, DOTTED, MIXED = "-", "--", ":", "-."

STYLES = {
    "gsplice": (BLUE, SOLID, "o"),
    "gsplice-splice": (BLUE, DASHED, "^"),
    "gsplice-copy": (BLUE, DOTTED, "v"),
    "gsplice-unmoderated": (BLUE, MIXED, "s"),
    "gsplice-server": (BLUE, MIXED, "D"),
    "gunicorn-1": (NAVY, SOLID, "P"),
    "gunicorn-2": (NAVY, DASHED, "X"),
    "gunicorn-2-reuse-port": (NAVY, DOTTED, "p"),
    "gevent": (BLACK, SOLID, "o"),
    "gevent-floor": (BLACK, DOTTED, "*"),
    "haproxy": (VERMILION, DASHED, "^"),
    "haproxy-splice": (VERMILION, SOLID, "o"),
    "haproxy-2": (VERMILION, MIXED, "s"),
    "nginx": (PURPLE, SOLID, "s"),
    "go": (SKY, SOLID, "o"),
    "go-all-cpus": (SKY, DASHED, "^"),
    "asyncio": (ORANGE, DASHED, "^"),
    "asyncio-protocol": (ORANGE, SOLID, "o"),
    "uvloop": (GREEN, DASHED, "^"),
    "uvloop-protocol": (GREEN, SOLID, "o"),
    "socat": (BROWN, SOLID, "D"),
    "ceiling": (GREY, DASHED, "*"),
}
# A contender that is not among them is one of these, and the same one in every picture.
OTHERS = tuple((GREY, line, marker) for line in (DOTTED, MIXED) for marker in "xd+<>h")
FOREMOST = "gsplice"
FEW_TIMES = 20  # the lowest value: a scale that wants more figures than those of 2 and 5


def style_of(contender: str) -> dict[str, Any]:
    """What ``plot`` is told of a contender."""
    color, line, marker = STYLES.get(contender) or OTHERS[crc32(contender.encode()) % len(OTHERS)]
    is_foremost = contender == FOREMOST
    return {
        "color": color,
        "linestyle": line,
        "marker": marker,
        "markersize": 7 if is_foremost else 5,
        "linewidth": 2.8 if is_foremost else 1.4,
        "zorder": 3 if is_foremost else 2,
    }


def name_powers(scale: Any, alone: bool = False) -> None:
    """On a logarithmic scale: powers of ten, and unless alone some between, in plain figures."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = scale.get_view_interval()
    between = (2.0, 5.0) if high > FEW_TIMES * low else (1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    scale.set_minor_locator(LogLocator(subs=between))
    scale.set_major_formatter(plain)
    scale.set_minor_formatter(NullFormatter() if alone else plain)


def plain(value: float, position: object) -> str:
    return f"{value:,g}"


def hide_frame(axis: Any) -> None:
    axis.grid(which="both", color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def finish(figure: Any, axes: Sequence[Any]) -> None:
    """One legend for all, beside the last: it covers nothing."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    order = [name for name in (*STYLES, *entries) if name in entries]
    names = list(dict.fromkeys(order))
    figure.tight_layout()
    axes[-1].legend(
        [entries[name] for name in names],
        names,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        frameon=False,
        handlelength=3.2,
    )
