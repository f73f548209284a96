"""The command line. `serving up --help` and so on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from serving import __version__
from serving.settings import SettingsError, load


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="serving", description="A chat-completion server on Ray Serve and vLLM.")
    parser.add_argument("--version", action="version", version=f"serving {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser(
        "up",
        help="start the server in the foreground",
        description="Start the front and the engines, wait until they are ready, stop everything at Ctrl-C.",
        epilog="example: serving up --set engine.replicas=2 --set http.port=8123",
    )
    up.add_argument("--config", type=Path, metavar="FILE", help="settings file (YAML); default: all defaults")
    up.add_argument("--set", action="append", default=[], metavar="a.b=VALUE", help="override one setting; repeatable")
    options = parser.parse_args(arguments)
    return _up(options)


def _up(options: argparse.Namespace) -> int:
    try:
        settings = load(options.config, options.set)
    except SettingsError as error:
        print(f"The settings are wrong:\n{error}", file=sys.stderr)  # noqa: T201
        return 2
    from serving.launch import StartFailed, up

    try:
        up(settings)
    except StartFailed as error:
        print(f"The server did not start:\n{error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
