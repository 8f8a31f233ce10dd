"""``python -m bench [COMMAND] ...``; the command is ``relay`` when none is named."""

import sys

try:
    from bench import memory, pictures, relay, syscalls, ticker
    from bench.command_line import run_program
    from bench.web import alternating
    from bench.web import command as web
except ModuleNotFoundError as error:
    if error.name != "tabulate":
        raise
    sys.exit("the bench needs tabulate: python -m pip install -e '.[bench]'")

COMMANDS = {
    "relay": relay.main,
    "scale": relay.scale,
    "memory": memory.main,
    "ticker": ticker.main,
    "syscalls": syscalls.main,
    "web": web.main,
    "web-alternating": alternating.main,
    "pictures": pictures.main,
}


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    return relay.main(arguments)


if __name__ == "__main__":
    run_program(main)
