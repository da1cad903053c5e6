"""The command line `fmrec-manager`: root the trees, show how they do, stop.

Only click is imported here; what a command needs is imported when it runs, so that --help answers at once. Exit codes: 0 fine,
1 failed, 2 usage (settings included), 130 interrupted. What a user can cause is told in a sentence, never with a traceback.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from protocol.aio.command_line import run_command

STATUS_TIMEOUT_S = 5.0
WATCH_INTERVAL_S = 1.0
EXAMPLES_SERVE = """
\b
Examples:
  fmrec-manager serve
  fmrec-manager serve --set tree.main.rounds=100 --set tree.main.recovery=substitute
  fmrec-manager serve --standby --listen 127.0.0.1:7701 --join 127.0.0.1:7700
  fmrec-manager serve manager.toml --listen 10.0.0.5:7700 --state-dir /var/lib/fmrec --set overlay.preset=lan
  FMREC_TREE__MAIN__ROUNDS=10 fmrec-manager serve --show-config
"""
EXAMPLES_STATUS = """
\b
Examples:
  fmrec-manager status --watch
  fmrec-manager status --at 10.0.0.5:7700 --format json
"""
at_option = click.option("--at", default="127.0.0.1:7700", show_default=True, metavar="HOST:PORT", help="Where the manager listens.")
cluster_option = click.option("--cluster", default="fmrec", show_default=True, envvar="FMREC_CLUSTER", help="The manager's cluster.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` without the program's name, sys.argv's where there are none."""
    return run_command(commands, "fmrec-manager", arguments)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """The manager of FMRec: roots the trees, runs their rounds, recovers what failed agents had learnt."""


@commands.command(epilog=EXAMPLES_SERVE, short_help="Root the trees until they are done.")
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--listen", metavar="HOST:PORT", help="Where to listen [127.0.0.1:7700].")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Keep theta and round state here, so that they outlive the process.")
@click.option("--join", multiple=True, metavar="HOST:PORT", help="A live peer of a ring that exists already; repeatable.")
@click.option("--standby", is_flag=True, help="Watch the manager that --join leads to, and take its place when it is gone.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting; repeatable.")
@click.option("--show-config", is_flag=True, help="Print the merged settings as TOML and exit.")
def serve(
    config: Path | None,
    listen: str | None,
    state_dir: Path | None,
    join: tuple[str, ...],
    standby: bool,
    overrides: tuple[str, ...],
    show_config: bool,
) -> int:
    """Root the trees until they are done, with settings from the TOML file CONFIG, FMREC_ variables and these options."""
    from fmrec_manager.settings import ManagerSettings
    from protocol.aio.settings import load, show, toml_value

    given = {"listen": listen, "state_dir": state_dir, "join": join or None, "standby": standby or None}
    options = [f"--{key.replace('_', '-')} {key}={toml_value(value)}" for key, value in given.items() if value is not None]
    settings = load(ManagerSettings, config, [*overrides, *options], os.environ)
    if show_config:
        click.echo(show(settings), nl=False)
        return 0
    from fmrec_manager.daemon import serve as serve_until_done

    return serve_until_done(settings)


@commands.command(epilog=EXAMPLES_STATUS, short_help="Show how the trees do.")
@at_option
@cluster_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--watch", is_flag=True, help="Ask again each second, until interrupted.")
def status(at: str, cluster: str, form: str, watch: bool) -> int:
    """Show the trees: rounds, loss, members, replicas, recoveries, results."""
    from fmrec_manager.display import Display, text

    documents = _documents(at, cluster, watch)
    if form == "json":
        for document in documents:
            click.echo(json.dumps(document, indent=None if watch else 2))
    elif watch:
        with Display(sys.stdout) as display:
            for document in documents:
                display.update(document)
    else:
        click.echo(text(next(documents)), nl=False)
    return 0


def _documents(at: str, cluster: str, watch: bool) -> Iterator[dict[str, object]]:
    """The manager's status documents: one, or one each second for ever."""
    import asyncio
    import time

    from protocol.aio.settings import address_argument
    from protocol.aio.status_client import request_status

    address = address_argument("--at", at)
    while True:
        document = asyncio.run(request_status(address, cluster, STATUS_TIMEOUT_S))
        if "trees" not in document or "manager" not in document:
            raise click.ClickException(f"{at} answers, but it is no manager: ask it with fmrec-agent status --at {at}")
        yield document
        if not watch:
            return
        time.sleep(WATCH_INTERVAL_S)


@commands.command(epilog="\b\nExample:\n  fmrec-manager stop --at 127.0.0.1:7700", short_help="Stop the manager.")
@at_option
@cluster_option
def stop(at: str, cluster: str) -> int:
    """Stop the manager; its agents keep theta and the round state, and a new start goes on from there. A standby would take over: stop it
    first to end a run."""
    import asyncio

    from protocol.aio.settings import address_argument
    from protocol.aio.status_client import request_stop

    asyncio.run(request_stop(address_argument("--at", at), cluster, STATUS_TIMEOUT_S))
    click.echo(f"the manager at {at} stops")
    return 0
