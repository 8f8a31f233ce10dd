"""``python -m bench [COMMAND] ...``; the command is ``relay`` when none is named."""

import sys
from pkgutil import resolve_name

try:
    from bench.command_line import COMMANDS, no_such_name, run_program
except ModuleNotFoundError as error:
    if error.name != "tabulate":
        raise
    sys.exit("the bench needs tabulate: python -m pip install -e '.[bench]'")


def main(arguments: list[str]) -> int:
    command, rest = next(iter(COMMANDS)), arguments
    if arguments and not arguments[0].startswith("-"):
        command, *rest = arguments
    if command not in COMMANDS:
        no_such_name(command, COMMANDS)
    status: int = resolve_name(COMMANDS[command])(rest)
    return status


if __name__ == "__main__":
    run_program(main)
