"""How often peers die, and how often a routing table must therefore be probed (MSPastry 4.1: self-tuning).

A table entry that died in silence costs whoever routes through it a timeout. MSPastry chooses the longest probe period for which a message
meets an unnoticed death with no more than a target probability L_r:

    P_f(T, mu) = 1 - (1 - exp(-T mu)) / (T mu)           a peer probed every T is dead and unnoticed
    L_r = 1 - (1 - P_f(T_ls + trial, mu)) (1 - P_f(T_rt + trial, mu)) ** (h - 1)

over the last hop, found in the leaf set, and the h - 1 before it, found in tables; h = 15/16 log16 N. mu is the rate at which a peer dies
in silence, taken from the last such deaths seen, N from how dense the leaf set lies on the ring. Who dies and whose host lives costs no
timeout: its connections break, or a dial is refused, within a round trip. Those that die in one moment (a rack, the other
side of a cut) are one event: that many died at once does not say that as many will soon again, and who else did is being found out already.
"""

from __future__ import annotations

from collections import deque
from math import expm1, inf, log

from protocol.identifiers import DIGIT_BITS
from protocol.parameters import OverlayParameters

DEATHS_KEPT = 16


class FailureRate:
    """The last deaths that a node saw among the peers it knows.

    calm_s: a newcomer, which has seen nothing yet, counts as having seen nobody die for so long. moment_s: deaths in so short a time
    are one event.
    """

    def __init__(self, began: float, calm_s: float = 0.0, moment_s: float = 0.0) -> None:
        self._began = began - calm_s
        self._moment_s = moment_s
        self._deaths: deque[float] = deque(maxlen=DEATHS_KEPT)

    def died(self, now: float) -> None:
        if not (self._deaths and now < self._deaths[-1] + self._moment_s):
            self._deaths.append(now)

    def per_peer(self, known: int, now: float) -> float:
        """Deaths of one peer in a second. Before there were DEATHS_KEPT, as if one came right now (MSPastry 4.1)."""
        full = len(self._deaths) == DEATHS_KEPT
        since_s = now - (self._deaths[0] if full else self._began)
        count = len(self._deaths) + (0 if full else 1)
        return count / (max(known, 1) * since_s) if since_s > 0 else inf


def unnoticed(period_s: float, rate: float) -> float:
    """P_f: the chance that a peer that dies at `rate` and is probed every `period_s` is dead and not yet known to be."""
    x = period_s * rate
    return x / 2 if x < 1e-6 else 1 + expm1(-x) / x


def _period_s(chance: float, rate: float) -> float:
    """The inverse of unnoticed(), by bisection."""
    low, high = 0.0, 4.0
    while unnoticed(high, 1.0) < chance and high < 1e6:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if unnoticed(middle, 1.0) < chance else (low, middle)
    return low / rate


def probe_period_s(rate: float, nodes: float, parameters: OverlayParameters) -> float:
    """T_rt, in seconds: how long a table entry may go unheard; between `silence_max_s` and `table_probe_max_s`.

    rate: deaths of one peer in a second; nodes: in the ring, estimated.
    """
    p = parameters
    shortest_s, longest_s = p.silence_max_s, p.table_probe_max_s
    table_hops = (1 - 2**-DIGIT_BITS) * log(max(nodes, 2.0), 2**DIGIT_BITS) - 1
    if rate <= 0 or table_hops <= 0.05:
        return longest_s
    if rate == inf:
        return shortest_s
    last_hop = unnoticed(p.silence_max_s + p.trial_max_s, rate)
    if last_hop >= p.raw_loss_target:
        return shortest_s
    chance = 1 - ((1 - p.raw_loss_target) / (1 - last_hop)) ** (1 / table_hops)
    return min(max(_period_s(chance, rate) - p.trial_max_s, shortest_s), longest_s)
