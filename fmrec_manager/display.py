"""How the manager shows its status document: a live picture on a terminal, lines in a log, a page for `status`.

The document is what daemon.py makes and `status --format json` prints. Three forms of it:

    Display   on a terminal, one picture redrawn in place; elsewhere, `lines` as they become due
    text      the whole document as plain text, 80 columns wide, every member in it
    lines     what is worth a line in a log since the document before

Names and reasons in it come from agents, so they are printed as they are: no markup, and no character that moves a cursor.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Document = Mapping[str, Any]
Cell = str | Text

WIDTH = 80
SPARK_POINTS = 24
RECOVERIES_SHOWN = 6
UNWELL_SHOWN = 6
UNSEEN = ", with the progress of those that hang at the root itself in the tree"
METRICS_SHOWN = 5
PHASES = {
    "waiting": "waiting for agents",
    "init": "making theta 0",
    "train": "training",
    "adapt": "targets adapt",
    "done": "done",
    "halted": "halted",
}
STYLES = {"alive": "green", "suspect": "yellow", "dead": "red", "left": "dim", "done": "green", "halted": "bold red"}


class Display:
    """The manager's own terminal, or its log. As a context, and `update` with each new document."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._stream = stream
        self._before: Document | None = None
        """The last document that was told in lines."""

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def update(self, document: Document) -> None:
        """Show this document in the place of the one before."""
        if self._live:
            self._live.update(_page(document, every_member=False), refresh=True)
            return
        for line in lines(self._before, document):
            print(line, file=self._stream, flush=True)
        self._before = document


def text(document: Document) -> str:
    """The whole document as plain text of at most 80 columns, ending with a newline."""
    page = io.StringIO()
    Console(file=page, width=WIDTH, color_system=None, highlight=False).print(_page(document, every_member=True))
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def lines(before: Document | None, now: Document) -> list[str]:
    """One line for each tree whose phase, round, members or reason changed since `before`, each new recovery and each new result."""
    told: list[str] = []
    for name, tree in now["trees"].items():
        past: Mapping[str, Any] = before["trees"].get(name, {}) if before else {}
        if any(past.get(key) != tree[key] for key in ("phase", "round", "counts", "reason")):
            told.append(f"{_clean(name)}: {_summary(tree)}")
        known = {_recovery_key(recovery) for recovery in past.get("recoveries", ())}
        for recovery in tree["recoveries"]:
            if _recovery_key(recovery) not in known:
                told.append(f"{_clean(name)}: recovery of {_recovery_line(recovery)}")
        for agent, result in tree["results"].items():
            if past.get("results", {}).get(agent) != result:
                figures = ", ".join(f"{key} {_figure(value)}" for key, value in result.items())
                told.append(f"{_clean(name)}: result of {_clean(agent)}: {figures}")
    return [*told, *(line for line in _watched(now) if before is None or line not in _watched(before))]


def _summary(tree: Mapping[str, Any]) -> str:
    parts = [
        f"{PHASES[tree['phase']]}, round {tree['round']}/{tree['rounds']}",
        *([f"loss {_figure(tree['loss'])}"] if tree["loss"] is not None else []),
        _members(tree["counts"]),
        f"{tree['replicas']} replicas",
        _counted(len(tree["recoveries"]), "recovery", "recoveries"),
        *([f"about {_duration(tree['time_left_s'])} left"] if tree["time_left_s"] is not None else []),
        *([_clean(tree["reason"])] if tree["reason"] else []),
    ]
    return ", ".join(parts)


def _recovery_key(recovery: Mapping[str, Any]) -> tuple[Any, ...]:
    return recovery["agent"], recovery["noticed_unix_s"], recovery["outcome"]


def _recovery_line(recovery: Mapping[str, Any]) -> str:
    behind = recovery["iterations_behind"]
    return (
        f"{_clean(recovery['agent'])} ({_clean(recovery['cause'])}): {_clean(recovery['outcome'])}, "
        f"located in {_ms(recovery['locate_ms'])}, {_size(recovery['bytes'])} from {_clean(recovery['holder'])} in "
        f"{_ms(recovery['transfer_ms'])}, {_ms(recovery['total_ms'])} in all, "
        f"{'-' if behind is None else _counted(behind, 'iteration', 'iterations')} behind"
    )


# --- the page ---------------------------------------------------------------------------------------------------------


def _page(document: Document, *, every_member: bool) -> Group:
    manager = document["manager"]
    head = Text.assemble(
        ("FMRec", "bold"),
        f" {_clean(document['cluster'])}   manager {_clean(manager['address'])}   pid {manager['pid']}   "
        f"{_clean(manager['device'])}   up {_duration(manager['uptime_s'])}",
    )
    parts: list[RenderableType] = [head]
    for name, tree in document["trees"].items():
        parts += [Text(), *_tree(name, tree, every_member)]
    parts += [Text(line) for line in _watched(document)]
    return Group(*parts)


def _watched(document: Document) -> list[str]:
    """A standby's trees that it does not root, a line each."""
    rooted, standby = document["trees"], document.get("standby", {})
    return [f"{_clean(name)}: standby, {_clean(tree['reason'])}" for name, tree in standby.items() if name not in rooted]


def _tree(name: str, tree: Mapping[str, Any], every_member: bool) -> Iterable[RenderableType]:
    title = Table.grid(expand=True)
    title.add_column(ratio=1)
    title.add_column(justify="right")
    title.add_row(
        Text.assemble((_clean(name), "bold"), f"  {_clean(tree['task'])}, recovery {tree['recovery']}"),
        Text.assemble((PHASES[tree["phase"]], STYLES.get(tree["phase"], "cyan")), f"   round {tree['round']} of {tree['rounds']}"),
    )
    yield title
    if not every_member:
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=max(tree["rounds"], 1), completed=min(tree["round"], tree["rounds"])))
        yield bar
    yield Padding(_figures(tree), (0, 0, 0, 2))
    unwell = [member for member in tree["members"] if member["state"] in ("suspect", "dead")]
    if every_member and tree["members"]:
        unseen = any(member["state"] == "alive" and member["round"] is None for member in tree["members"])
        yield _section("members" + (UNSEEN if unseen else ""), _members_table(tree["members"]))
    elif unwell:
        yield _section(_last("not well", len(unwell), UNWELL_SHOWN), _unwell_table(unwell[:UNWELL_SHOWN]))
    if tree["recoveries"]:
        shown = tree["recoveries"][-RECOVERIES_SHOWN:]
        yield _section(_last("last recoveries", len(tree["recoveries"]), RECOVERIES_SHOWN), _recoveries_table(shown))
    if tree["results"]:
        yield _section("results", _results_table(tree["results"]))


def _figures(tree: Mapping[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    left, first = tree["time_left_s"], tree["first_round"]
    time = f"{_duration(tree['elapsed_s'])} so far" + (f", about {_duration(left)} left" if left is not None else "")
    rows: list[tuple[str, Cell]] = [
        ("loss", f"{_figure(tree['loss'])}  {_spark(tree['losses'])}"),
        ("members", _members_text(tree["counts"])),
        ("replicas", f"{tree['replicas']}"),
        ("recoveries", f"{len(tree['recoveries'])}{f' since this manager resumed at round {first}' if first else ''}"),
        ("time", time),
        ("theta", _clean(tree["theta_digest"])[:16]),
    ]
    for label, cell in rows:
        grid.add_row(label, cell)
    if tree["reason"]:
        grid.add_row("reason", Text(_clean(tree["reason"]), style=STYLES.get(tree["phase"], "")))
    return grid


def _section(title: str, table: Table) -> Padding:
    return Padding(Group(Text(title, style="bold"), table), (1, 0, 0, 2))


def _last(title: str, count: int, shown: int) -> str:
    return title if count <= shown else f"{title} ({shown} of {count})"


def _table(*columns: tuple[str, bool]) -> Table:
    """A table without lines. columns: (header, whether it holds numbers); words are cut where they do not fit, numbers are not."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for header, numeric in columns:
        table.add_column(header, justify="right" if numeric else "left", no_wrap=numeric)
    return table


def _word(value: object, style: str = "") -> Text:
    """A cell of words: one line, cut with an ellipsis."""
    return Text(_clean(value), style=style, no_wrap=True, overflow="ellipsis")


def _members_table(members: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        ("name", False), ("role", False), ("state", False), ("address", False), ("pid", True),
        ("round", True), ("iteration", True), ("replicas", True),
    )  # fmt: skip
    for member in members:
        table.add_row(
            _word(member["name"]),
            _word(member["role"]),
            _word(member["state"], STYLES[member["state"]]),
            _word(member["address"]),
            _figure(member["pid"]),
            *_progress(member),
            _figure(member["replicas"]),
        )
    return table


def _unwell_table(members: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(("name", False), ("state", False), ("round", True), ("iteration", True), ("reason", False))
    for member in members:
        state = _word(member["state"], STYLES[member["state"]])
        table.add_row(_word(member["name"]), state, *_progress(member), _word(member["reason"]))
    return table


def _progress(member: Mapping[str, Any]) -> tuple[str, str]:
    """Round and iteration; no round where it has had no job yet."""
    return "-" if member["round"] == -1 else _figure(member["round"]), _figure(member["iteration"])


def _recoveries_table(recoveries: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        ("agent", False), ("cause", False), ("locate", True), ("move", True), ("total", True), ("size", True),
        ("behind", True), ("holder", False), ("outcome", False),
    )  # fmt: skip
    for recovery in recoveries:
        table.add_row(
            _word(recovery["agent"]),
            _word(recovery["cause"]),
            *(_ms(recovery[key]) for key in ("locate_ms", "transfer_ms", "total_ms")),
            _size(recovery["bytes"]),
            _figure(recovery["iterations_behind"]),
            _word(recovery["holder"]),
            _word(recovery["outcome"]),
        )
    return table


def _results_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each target, and the means. Long names of metrics break into several lines of the header."""
    metrics = list(dict.fromkeys(key for result in results.values() for key in result if key != "loss"))[:METRICS_SHOWN]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("target", vertical="bottom")
    for key in ("loss", *metrics):
        table.add_column(_clean(key).replace("_", " "), justify="right", vertical="bottom", max_width=13)
    for agent, result in results.items():
        table.add_row(_word(agent), *(_figure(result.get(key)) for key in ("loss", *metrics)))
    if len(results) > 1:
        table.add_row(Text("mean", style="bold"), *(_figure(_mean(results.values(), key)) for key in ("loss", *metrics)))
    return table


def _mean(results: Iterable[Mapping[str, Any]], key: str) -> float | None:
    values = [result[key] for result in results if result.get(key) is not None]
    return sum(values) / len(values) if values else None


# --- words and figures ------------------------------------------------------------------------------------------------


def _members(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in ("alive", "suspect", "dead", "left") if counts[state] or state != "left")


def _members_text(counts: Mapping[str, int]) -> Text:
    parts = [(f"{counts[state]} {state}", STYLES[state] if counts[state] else "dim") for state in ("alive", "suspect", "dead", "left")]
    return Text("   ").join(Text(words, style=style) for words, style in parts)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _clean(value: object) -> str:
    """As a word from a peer may be printed: what is not printable is shown as one replacement character each."""
    return "-" if value in (None, "") else "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in str(value))


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:#.4g}"


def _spark(losses: Sequence[float]) -> str:
    """The last losses as little bars, the least of them the lowest."""
    bars, last = "▁▂▃▄▅▆▇█", [loss for loss in losses[-SPARK_POINTS:] if loss == loss and abs(loss) != float("inf")]
    if not last:
        return ""
    low, span = min(last), max(last) - min(last)
    return "".join(bars[round((loss - low) / span * (len(bars) - 1)) if span else 0] for loss in last)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _ms(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s" if milliseconds < 1e6 else _duration(milliseconds / 1000)
    return f"{milliseconds:.3g} ms" if milliseconds < 999.5 else "1 s"


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
