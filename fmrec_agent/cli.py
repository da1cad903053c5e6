"""The command line `fmrec-agent`: start agents, ask one how it is, make one leave.

Only click is imported here; what a command needs is imported when it runs, so that --help answers at once. Exit codes: 0 fine,
1 failed, 2 usage (settings included), 130 interrupted. What a user can cause is told in a sentence, never with a traceback.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from protocol.aio.command_line import run_command

if TYPE_CHECKING:
    from fmrec_agent.learning.learner import Role

STATUS_TIMEOUT_S = 5.0
EXAMPLES_START = """
\b
Examples:
  fmrec-agent start --count 8
  fmrec-agent start --join 10.0.0.5:7700 --join 10.0.0.6:7710 --listen 10.0.0.7:auto --set overlay.preset=lan
  fmrec-agent start --count 20 --set sources=16 --state-dir /var/lib/fmrec --restart on-failure
  fmrec-agent start agent.toml --set learning.inner_rate=0.05 --show-config
"""
EXAMPLES_AT = """
\b
Examples:
  fmrec-agent status --at 127.0.0.1:7710
  fmrec-agent status --at 127.0.0.1:7710 --format json
"""
EXAMPLES_CHECK = """
\b
Examples:
  fmrec-agent check-learner my_module:MyLearner
  fmrec-agent check-learner admm --role source --set learning.task.data=../data/parking
"""
EXAMPLES_DATA = """
\b
Examples:
  fmrec-agent data get parking --to data/parking
  fmrec-agent start --count 12 --set sources=9 --set learning.task.data=data/parking
"""
at_option = click.option("--at", required=True, metavar="HOST:PORT", help="Where the agent listens.")
cluster_option = click.option(
    "--cluster", default="fmrec", show_default=True, envvar="FMREC_CLUSTER", help="The cluster that the agent is in."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` without the program's name, sys.argv's where there are none."""
    return run_command(commands, "fmrec-agent", arguments)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Agents of FMRec: train locally, and keep each other's meta knowledge safe."""


@commands.command(epilog=EXAMPLES_START, short_help="Start agents.")
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--join", multiple=True, metavar="HOST:PORT", help="A live peer or the manager [127.0.0.1:7700]; repeatable.")
@click.option("--count", type=int, help="How many agents, one process each [1].")
@click.option("--name", help="The agent's name; numbered where there are several [agent].")
@click.option("--listen", metavar="HOST:PORT", help='Where the first one listens; PORT may be "auto" [127.0.0.1:auto].')
@click.option("--state-dir", type=click.Path(path_type=Path), help="Keep records here, so that they outlive the process.")
@click.option("--restart", type=click.Choice(["no", "on-failure"]), help="Start an agent again that died [no].")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting; repeatable.")
@click.option("--show-config", is_flag=True, help="Print the merged settings as TOML and exit.")
def start(config: Path | None, overrides: tuple[str, ...], show_config: bool, **options: Any) -> int:
    """Start agents, with settings from the TOML file CONFIG, from FMREC_ variables and from these options."""
    from fmrec_agent.settings import AgentSettings
    from protocol.aio.settings import load, show

    settings = load(AgentSettings, config, [*overrides, *_as_overrides(options)], os.environ)
    if show_config:
        click.echo(show(settings), nl=False)
        return 0
    from fmrec_agent.launcher import launch

    return launch(settings)


def _as_overrides(options: Mapping[str, Any]) -> Iterator[str]:
    """The options that were given, as overrides for `load`."""
    from protocol.aio.settings import toml_value

    listen = options["listen"]
    if listen is not None:
        host, separator, port = listen.rpartition(":")
        if not separator or not host or not (port == "auto" or port.isdecimal()):
            raise click.UsageError(f"--listen is {listen}, but should be HOST:PORT, such as 127.0.0.1:7710 or 127.0.0.1:auto.")
        yield f"--listen host={toml_value(host.removeprefix('[').removesuffix(']'))}"
        yield f"--listen port={port}"
    for key in ("join", "count", "name", "state_dir", "restart"):
        if options[key] not in (None, ()):
            yield f"--{key.replace('_', '-')} {key}={toml_value(options[key])}"


@commands.command(epilog=EXAMPLES_AT, short_help="Say how an agent is.")
@at_option
@cluster_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def status(at: str, cluster: str, form: str) -> int:
    """Say how an agent is: its neighbours, its trees, the records that it holds."""
    import asyncio

    from protocol.aio.settings import address_argument
    from protocol.aio.status_client import request_status

    document = asyncio.run(request_status(address_argument("--at", at), cluster, STATUS_TIMEOUT_S))
    if form == "json":
        click.echo(json.dumps(document, indent=2))
        return 0
    for line in _outline(document, ""):
        # Names in it come from peers: a character that moves the cursor is shown, not obeyed.
        click.echo("".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line))
    return 0


def _outline(value: Mapping[Any, Any], indent: str) -> Iterator[str]:
    """A document as indented lines, one for each figure: an agent's status has no fixed columns to make a table of."""
    for key, entry in value.items():
        if isinstance(entry, Mapping) or (isinstance(entry, list) and any(isinstance(item, Mapping | list) for item in entry)):
            yield f"{indent}{key}:"
            yield from _outline(entry if isinstance(entry, Mapping) else dict(enumerate(entry)), indent + "  ")
        elif isinstance(entry, list):
            yield f"{indent}{key}: {', '.join(map(str, entry)) or '-'}"
        else:
            yield f"{indent}{key}: {'-' if entry is None else entry}"


@commands.command("check-learner", epilog=EXAMPLES_CHECK, short_help="Check a Learner of your own.")
@click.argument("learner")
@click.option("--config", type=click.Path(path_type=Path), help="A TOML file of settings, as for start.")
@click.option("--role", "roles", type=click.Choice(["source", "target"]), multiple=True, help="Check this role alone [both].")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any setting, as for start; repeatable.")
def check_learner(learner: str, config: Path | None, roles: tuple[Role, ...], overrides: tuple[str, ...]) -> int:
    """Check that LEARNER, as module:attribute or by name, keeps what exact recovery asks of it: restored, it ends with equal bytes."""
    from fmrec_agent.learning.conformance import elsewhere, findings, maker
    from fmrec_agent.settings import AgentSettings
    from protocol.aio.process import FAILED, FINE
    from protocol.aio.settings import load, toml_value

    options = load(AgentSettings, config, [*overrides, f"--learner learning.learner={toml_value(learner)}"], os.environ).learning
    broken = False
    for role in roles or ("source", "target"):
        found = list(findings(maker(options, role), role))
        if not any(finding.fault for finding in found):
            found.append(elsewhere(options, role))
        for finding in found:
            verdict = f"broken  {finding.promise}: {finding.fault}" if finding.fault else f"kept    {finding.promise}"
            click.echo(f"{role:7} {verdict}")
            broken |= finding.fault is not None
    return FAILED if broken else FINE


@commands.group(short_help="Fetch public data sets.")
def data() -> None:
    """Public data sets for the tasks."""


@data.command(epilog=EXAMPLES_DATA, short_help="Fetch one.")
@click.argument("name", type=click.Choice(["parking"]))
@click.option("--to", type=click.Path(path_type=Path), default=Path("data/parking"), show_default=True, help="The folder to put it in.")
@click.option("--from", "source", metavar="URL", help="A mirror of the repository at its pinned commit.")
def get(name: str, to: Path, source: str | None) -> int:
    """Fetch the data set NAME from its public repository, check it, and convert it for learning.task.data."""
    from fmrec_agent.learning.tasks.parking_download import SOURCE, get_parking

    fetched = get_parking(to, source or SOURCE, click.echo)
    click.echo(f"the {name} data is in {to}" if fetched else f"the {name} data was in {to} already")
    return 0


@commands.command(epilog="\b\nExample:\n  fmrec-agent leave --at 127.0.0.1:7710", short_help="Make an agent leave in order.")
@at_option
@cluster_option
def leave(at: str, cluster: str) -> int:
    """Make an agent leave its trees and the ring in order, and exit: nothing is recovered for it."""
    import asyncio

    from protocol.aio.settings import address_argument
    from protocol.aio.status_client import request_stop

    asyncio.run(request_stop(address_argument("--at", at), cluster, STATUS_TIMEOUT_S))
    click.echo(f"the agent at {at} leaves")
    return 0
