"""What Hypothesis chooses from, when it makes up stories of transfers (`model.Transfers`).

Borders are sought where the kernel and gsplice have theirs: sizes beside powers of two, time-outs
as short as a pass of the event loop on a busy machine, and each kind of end at either side.
"""

from __future__ import annotations

from ends import FILE_KINDS, SOCKET_KINDS
from hypothesis import strategies as st
from ways import Options

#: A byte to a megabyte; every buffer's size is a power of two, and those beside it are borders.
SIZES = st.builds(
    lambda power, more: (1 << power) + more,
    st.sampled_from(range(1, 21)),
    st.sampled_from([-1, 0, 1, 77]),
)
KIND = st.sampled_from(2 * SOCKET_KINDS + FILE_KINDS)
_PAIR_OF_KINDS = st.tuples(KIND, KIND)
#: Of the ends of a connection; an echo has only one.
KINDS = st.one_of(
    _PAIR_OF_KINDS, _PAIR_OF_KINDS, _PAIR_OF_KINDS, st.tuples(st.sampled_from(SOCKET_KINDS))
)
#: Of the ends of a connection, each has one.
NUMBERS = st.integers(0, 2)
MOMENTS = st.sampled_from([0.001, 0.003, 0.01])
#: Of these none comes before its story is over: whatever is left of one, its timer say, is seen.
_LONG = 600.0
_TIMEOUTS = st.one_of(st.none(), st.none(), MOMENTS, st.just(_LONG))
#: What a connection begins with: so many transfers, or a relay.
BEGINNINGS = st.sampled_from(["relay", "relay", "0", "1", "2"])
#: Passes of the event loop behind a step.
PASSES = st.sampled_from([0, 1, 4])
MODES = st.sampled_from(["auto", "splice", "copy"])
MODERATIONS = st.sampled_from([0.001, 0.0, 0.0002, 0.005, 0.05])
#: Of a transfer that nothing ends before its time.
STEADY = st.builds(
    lambda mode, moderation: Options(mode, moderation=moderation), MODES, MODERATIONS
)
OPTIONS = st.builds(
    Options,
    mode=MODES,
    count=st.one_of(st.none(), SIZES),
    idle_timeout=_TIMEOUTS,
    own_timeout=_TIMEOUTS,
    moderation=MODERATIONS,
    by_caller=st.booleans(),
    caller_timeout=st.one_of(st.none(), st.none(), MOMENTS),
)
#: How a transfer that holds bytes ends; "none" leaves it running.
ENDINGS = st.sampled_from(["stop", "kill", "time out", "none"])
