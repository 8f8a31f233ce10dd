"""How pictures look: one colour for a family of contenders, one marker for each of its members.

The colours are those of Okabe and Ito, which the colour-blind can tell apart; nothing is told by
colour alone.
"""

from collections.abc import Sequence
from typing import Any

SIZE = (7.2, 5.4)  # inches, of a pair of axes

# Without yellow, which is too pale for a line on white.
BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
VERMILION, PURPLE, BLACK, GREY, BROWN = "#D55E00", "#CC79A7", "#000000", "#777777", "#8C6D31"

SOLID, DASHED, DOTTED, MIXED = "-", "--", ":", "-."

STYLES = {
    "gsplice": (BLUE, SOLID, "o"),
    "gsplice-splice": (BLUE, DASHED, "^"),
    "gsplice-copy": (BLUE, DOTTED, "v"),
    "gsplice-unmoderated": (BLUE, MIXED, "s"),
    "gsplice-server": (BLUE, MIXED, "D"),
    "gevent": (BLACK, SOLID, "o"),
    "haproxy": (VERMILION, DASHED, "^"),
    "haproxy-splice": (VERMILION, SOLID, "o"),
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
OTHER = (GREY, DOTTED, "x")
FOREMOST = "gsplice"


def style_of(contender: str) -> dict[str, Any]:
    """What ``plot`` is told of a contender."""
    color, line, marker = STYLES.get(contender, OTHER)
    is_foremost = contender == FOREMOST
    return {
        "color": color,
        "linestyle": line,
        "marker": marker,
        "markersize": 7 if is_foremost else 5,
        "linewidth": 2.8 if is_foremost else 1.4,
        "zorder": 3 if is_foremost else 2,
    }


def name_powers(scale: Any) -> None:
    """On a logarithmic scale: powers of ten, and 2 and 5 times them, in plain figures."""
    from matplotlib.ticker import LogLocator

    scale.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    scale.set_major_formatter(_plain)
    scale.set_minor_formatter(_plain)


def _plain(value: float, position: object) -> str:
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
