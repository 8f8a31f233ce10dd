"""``python -m bench [COMMAND] ...``; the command is ``relay`` when none is named."""

import sys

try:
    from bench import memory, pictures, relay, syscalls, ticker
    from bench.command_line import COMMANDS, no_such_name, run_program
    from bench.web import alternating
    from bench.web import command as web
except ModuleNotFoundError as error:
    if error.name != "tabulate":
        raise
    sys.exit("the bench needs tabulate: python -m pip install -e '.[bench]'")

MAINS = (
    relay.main,
    relay.scale,
    memory.main,
    ticker.main,
    syscalls.main,
    web.main,
    alternating.main,
    pictures.main,
)


def main(arguments: list[str]) -> int:
    command, *rest = arguments or [""]
    if not command or command.startswith("-"):
        command, rest = COMMANDS[0], arguments
    if command not in COMMANDS:
        no_such_name(command, COMMANDS)
    return dict(zip(COMMANDS, MAINS, strict=True))[command](rest)


if __name__ == "__main__":
    run_program(main)
