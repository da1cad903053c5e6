"""Scenarios: races told as text files, commands and the trace that they leave (in the manner of etcd-raft's rafttest).

A file is a story. Paragraphs of prose stand as they are; a block is one or more commands, a line `----`, and what the commands brought:

    route 52 from c
    ----
       1 ms  c -> b  Route 52 hops=1 #1
       1 ms  b delivers 52 after 1 hop

Write the commands, then let the traces be written and read them over, each line:

    python -m tests.scenarios.runner --rewrite [FILE...]

A line of trace is what has come about by that time: a message that has arrived (or was held, dropped, lost), the end of a dial, what a node
told its application. Upkeep (heartbeats, pings, rows, the trees' alive messages) is hidden unless a scenario says `show`.

    parameters leaf_set_size=4             before all else, where the defaults do not serve
    nodes a=10 b=50 c=90                   names, and the leading digits of their ids
    ring a=10 b=50 c=90                    the same, and a settled ring of them, untold
    start b [through a c] [knowing d]      seeds, and peers remembered
    restart b [elsewhere] [through a]      the next life, b#2, at the same address or at another
    kill b | stop b | continue b | leave b SIGKILL, SIGSTOP, SIGCONT, an orderly leave
    cut a b | cut a->b | mend              both ways, one way; no cut is left
    block a->b | reset a b                 a cannot dial b (a firewall); their connection breaks
    hold a->b | deliver a->b | drop a->b | release a->b   a link whose messages wait: the first goes, the first is lost, all go
    settle | advance 1.2s                  until nothing is on its way; time passes
    route 5a from a                        a datagram
    root t at a | join t b | leave t b | multicast t 1    trees; `t` is a name
    say a                                  what a knows now
    show Ping ... | hide probes ...        kinds of messages, notes and events; `upkeep`, `probes` (of leaf sets), `trials` (of suspects)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path

from protocol.identifiers import Address, NodeId, Peer, TreeId
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.parameters import loopback
from protocol.wire.messages import Datagram, RoundOpen
from protocol.wire.values import Departed, MemberInfo
from tests.scenarios.network import Happened, Link, Network, node_id

HERE = Path(__file__).parent
RULE = "----"
GROUPS = {
    "upkeep": {"Heartbeat", "Alive", "TreePulse", "Ping", "Pong", "Measured", "RowRequest", "RowReply"},
    "probes": {"LeafProbe", "LeafProbeReply"},
    "trials": {"PeerLost", "DialEnded", "peer_suspected", "peer_cleared", "IndirectProbe", "IndirectAnswer", "Suspected"},
}
UNTOLD = (ev.TimerFired, ev.Started)


class Scenario:
    """One network, and the commands that act on it."""

    def __init__(self) -> None:
        self.network = Network()
        self.hidden = set(GROUPS["upkeep"])
        self.trees: dict[str, TreeId] = {}
        self._told = 0
        self._commands: dict[str, Callable[..., str | None]] = {
            "parameters": self._parameters,
            "nodes": lambda *names: self._name(names),
            "ring": self._ring,
            "start": lambda name, *rest: self._start(name, rest),
            "restart": lambda name, *rest: self._start(name, rest),
            "kill": lambda name: self.network.kill(name),
            "stop": lambda name: self.network.stop(name),
            "continue": lambda name: self.network.resume(name),
            "leave": self._leave,
            "cut": self._cut,
            "block": lambda link: self.network.blocked.add(self._link(link)),
            "reset": lambda one, other: self.network.reset(one, other),
            "mend": lambda: self.network.cuts.clear(),
            "hold": lambda link: self.network.hold(self._link(link)),
            "deliver": lambda link: self.network.deliver(self._link(link)),
            "drop": lambda link: self.network.drop(self._link(link)),
            "release": lambda link: self.network.release(self._link(link)),
            "settle": lambda: self.network.settle(),
            "advance": lambda time: self.network.advance(float(time.removesuffix("s"))),
            "route": lambda key, _, name: self.network.tell(name, ev.RouteMessage(node_id(key), b"")),
            "root": self._root,
            "join": self._join,
            "multicast": self._multicast,
            "say": self._say,
            "show": lambda *kinds: self.hidden.difference_update(self._kinds(kinds)),
            "hide": lambda *kinds: self.hidden.update(self._kinds(kinds)),
        }

    def run(self, command: str) -> list[str]:
        """What the command brought, line by line."""
        word, *arguments = command.split()
        if word not in self._commands:
            raise ValueError(f"no such command: {command!r} (see the docstring of tests/scenarios/runner.py)")
        answer = self._commands[word](*arguments)
        told = [line for happened in self.network.trace[self._told :] if (line := self._tell(happened))]
        self._told = len(self.network.trace)
        return told + ([answer] if answer else [])

    # --- commands -----------------------------------------------------------------------------------------------------

    def _parameters(self, *settings: str) -> None:
        values = {name: float(value) if "." in value else int(value) for name, value in (s.split("=") for s in settings)}
        self.network = Network(replace(loopback(), **values))  # type: ignore[arg-type]

    def _name(self, names: tuple[str, ...]) -> None:
        for name, digits in (one.split("=") for one in names):
            self.network.name(name, digits)

    def _ring(self, *names: str) -> None:
        self.network.ring(**dict(one.split("=") for one in names))
        self._told = len(self.network.trace)

    def _start(self, name: str, rest: tuple[str, ...]) -> None:
        words: dict[str, list[str]] = {"through": [], "knowing": []}
        into: list[str] = []
        for word in rest:
            into = words.get(word, into)
            if word not in words and word != "elsewhere":
                into.append(word)
        self.network.start(name, words["through"], words["knowing"], elsewhere="elsewhere" in rest)

    def _leave(self, *who: str) -> None:
        event = ev.Leave() if len(who) == 1 else ev.LeaveTree(self.trees[who[0]])
        self.network.tell(who[-1], event)

    def _link(self, link: str) -> Link:
        source, target = link.split("->")
        return source, target

    def _cut(self, *ends: str) -> None:
        for link in [self._link(ends[0])] if len(ends) == 1 else [(ends[0], ends[1]), (ends[1], ends[0])]:
            self.network.cut(link)

    def _root(self, tree: str, _: str, name: str) -> None:
        self.trees[tree] = self.network.peer(name).id
        self.network.tell(name, ev.CreateTree(self.trees[tree]))

    def _join(self, tree: str, name: str) -> None:
        self.network.tell(name, ev.JoinTree(self.trees[tree], MemberInfo(self.network.peer(name), name, "source", 1)))

    def _multicast(self, tree: str, number: str) -> None:
        root = next(p for p in self.network.processes.values() if p.alive and p.peer.id == self.trees[tree])
        self.network.tell(root.name, ev.SendMulticast(self.trees[tree], RoundOpen("train", int(number), 1, "exact", root.peer)))

    def _say(self, name: str) -> str:
        pastry = self.network[name].pastry
        around = f"left {self._value(pastry.leaf_set.left)} right {self._value(pastry.leaf_set.right)}"
        state = "joining" if not pastry.active else "settled" if pastry.settled else "active, not named by both neighbours"
        lines = [f"{name} is {state}: {around}"]
        for tree in self.network[name].scribe.trees.values():
            parent = "root" if tree.is_root else f"parent {tree.parent and self._value(tree.parent)}"
            lines.append(f"{name} in tree {self._value(tree.id)}: {parent}, children {self._value(list(tree.children))}")
        return "\n".join(lines)

    def _kinds(self, names: tuple[str, ...]) -> set[str]:
        return {kind for name in names for kind in GROUPS.get(name, {name})}

    # --- telling ------------------------------------------------------------------------------------------------------

    def _tell(self, happened: Happened) -> str:
        what, kind = happened.what, type(happened.what).__name__
        if isinstance(what, ev.MessageReceived):
            kind = type(what.message).__name__
        elif isinstance(what, fx.Notify):
            kind = what.fact
        if isinstance(what, UNTOLD) or kind in self.hidden:
            return ""
        told = self._told_of(happened.at, what, happened.other)
        return f"{round(1000 * happened.when):5d} ms  {told}{f'  ({happened.fate})' if happened.fate else ''}" if told else ""

    def _told_of(self, at: str, what: object, other: str) -> str:
        match what:
            case ev.MessageReceived(message=message):
                return f"{other} -> {at}  {self._value(message)}"
            case ev.PeerLost():
                return f"{at} loses {self._value(what.peer)}: {what.reason}"
            case ev.DialEnded() | ev.SeedAnswered() | ev.SeedFailed():
                return self._dial(at, what)
            case fx.Notify():
                return f"{at} notes {what.fact} {' '.join(self._value(value) for value in what.details.values())}"
            case fx.Activated():
                return f"{at} is active"
            case fx.Delivered():
                return f"{at} delivers {self._value(what.key)} after {what.hops} hop{'s' * (what.hops != 1)}"
            case fx.Quit():
                return f"{at} quits: {what.reason}"
            case fx.MulticastReceived():
                gap = ", having missed some" if what.gap else ""
                return f"{at} receives multicast {what.body.round} from {self._value(what.parent)}{gap}"
            case fx.MembersChanged():
                came = " ".join(f"+{self._value(member.peer)}" for member in what.joined)
                went = " ".join(f"-{self._value(one.id)} ({one.cause}: {one.reason})" for one in what.departed)
                return f"{at} counts {' '.join(part for part in (came, went) if part)}"
        return ""

    def _dial(self, at: str, ended: ev.DialEnded | ev.SeedAnswered | ev.SeedFailed) -> str:
        if isinstance(ended, ev.SeedFailed):
            return f"{at} dials seed {self._value(ended.address)}: {ended.reason}"
        if isinstance(ended, ev.SeedAnswered):
            return f"{at} dials seed {self._value(ended.peer)}: hello"
        if ended.found is None:
            return f"{at} dials {self._value(ended.peer)}: {ended.reason}"
        return f"{at} dials {self._value(ended.peer)}: hello{'' if ended.found == ended.peer else f' from {self._value(ended.found)}'}"

    def _value(self, value: object) -> str:
        """Short and readable: names for nodes, leading digits for keys; fields that hold their defaults are left out."""
        match value:
            case Peer():
                found = (process.name for process in self.network.processes.values() if process.peer == value)
                return next(found, f"{self._value(value.id)}#{value.incarnation}")
            case NodeId():
                found = (process.name for process in self.network.processes.values() if process.peer.id == value)
                named = next(found, "")
                return named or (str(value).rstrip("0") or "0")
            case Address():
                found = (name for name, process in self.network.processes.items() if process.peer.address == value)
                return next(found, str(value))
            case Datagram():
                return ""
            case MemberInfo():
                return f"+{self._value(value.peer)}"
            case Departed():
                return f"-{self._value(value.id)}"
            case tuple() | list():
                return f"[{' '.join(self._value(item) for item in value)}]"
            case str():
                return self._named(value)
            case bool() | int() | float():
                return str(value)
        if not is_dataclass(value):
            return ""
        return " ".join(part for part in (type(value).__name__, *self._fields(value)) if part)

    def _named(self, text: str) -> str:
        """Reasons name nodes by the first digits of their ids."""
        for process in self.network.processes.values():
            text = text.replace(process.peer.id.short, process.name.split("#")[0])
        return text

    def _fields(self, value: object) -> list[str]:
        """Of a message: its first field bare, the others by name."""
        parts: list[str] = []
        for index, each in enumerate(fields(value)):  # type: ignore[arg-type]
            held = getattr(value, each.name)
            if each.default is not MISSING and held == each.default:
                continue
            told = self._value(held)
            bare = index == 0 or (is_dataclass(held) and not isinstance(held, Peer))
            parts.append(f"#{told}" if each.name == "sequence" else told if bare else f"{each.name}={told}")
        return parts


# --- files ------------------------------------------------------------------------------------------------------------


def replay(text: str) -> str:
    """The same file, with the traces that its commands leave now."""
    scenario = Scenario()
    out: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        lines = paragraph.splitlines()
        if RULE not in lines:
            out.append(paragraph)
            continue
        commands = lines[: lines.index(RULE)]
        brought = [line for command in commands if not command.startswith("#") for line in scenario.run(command)]
        out.append("\n".join([*commands, RULE, *brought]))
    return "\n\n".join(out) + "\n"


def files() -> list[Path]:
    return sorted(HERE.glob("*.txt"))


def main(arguments: list[str]) -> int:
    if arguments[:1] != ["--rewrite"]:
        print("usage: python -m tests.scenarios.runner --rewrite [FILE...]")
        return 2
    for path in [Path(name) for name in arguments[1:]] or files():
        before = path.read_text()
        after = replay(before)
        path.write_text(after)
        print(f"{path.name}: {'as before' if after == before else 'rewritten'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
