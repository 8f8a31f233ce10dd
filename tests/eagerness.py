"""Moderation that takes whatever is read a few times for a stream, on a machine of any speed."""

from __future__ import annotations

import pytest

from gsplice import _moderation, _reading


def make_eager(
    patch: pytest.MonkeyPatch,
    *,
    reads: int | None = None,
    rounds: int | None = None,
    plenty: int | None = None,
) -> None:
    """Have *patch* make it so.

    :param reads: after how many of them it looks; None for as many as in earnest.
    :param rounds: how many of them are made for a tick, at the most.
    :param plenty: bytes; where more flows in a period it ticks twice as often.
    """
    patch.setattr(_moderation, "_QUICK", float("inf"))
    if reads is not None:
        patch.setattr(_moderation, "PATIENCE", reads)
    if rounds is not None:
        patch.setattr(_reading, "_ROUNDS", rounds)
    if plenty is not None:
        patch.setattr(_moderation, "_PLENTY", plenty)
        patch.setattr(_moderation, "_PLENTY_NO_MORE", plenty)
