"""Proximity: how far every peer is, and how long its acknowledgement may take (MSPastry 3.2 and 4.2; RFC 6298 for the formula).

1. Each round trip that is measured (an acknowledgement, a pong) moves the peer's smoothed round trip by an eighth and its mean deviation
   by a quarter. The peer may also tell what it has measured to us: distance is symmetric; our own measurement stands above that.
2. The timeout of the next acknowledgement is srtt + 4 deviations, within limits, doubled for each that was missed since the last one
   came (Karn). It is aggressive: a miss costs a detour and a probe, not a death.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.identifiers import NodeId
from protocol.parameters import OverlayParameters


@dataclass(slots=True)
class _RoundTrip:
    smoothed_s: float
    deviation_s: float
    measured: bool
    missed: int = 0


class Proximity:
    """Round trips by peer; beyond `remembered_lives_max`, whoever was measured first is forgotten."""

    def __init__(self, parameters: OverlayParameters) -> None:
        self._parameters = parameters
        self._trips: dict[NodeId, _RoundTrip] = {}

    def sample(self, identifier: NodeId, rtt_s: float) -> None:
        """A round trip was measured here."""
        trip = self._trips.get(identifier)
        if trip is None or not trip.measured:
            self._keep(identifier, _RoundTrip(rtt_s, rtt_s / 2, True))
            return
        trip.deviation_s += (abs(rtt_s - trip.smoothed_s) - trip.deviation_s) / 4
        trip.smoothed_s += (rtt_s - trip.smoothed_s) / 8
        trip.missed = 0

    def told(self, identifier: NodeId, rtt_s: float) -> None:
        """The peer has measured the way between us; no news where we have."""
        trip = self._trips.get(identifier)
        if trip is None or not trip.measured:
            self._keep(identifier, _RoundTrip(rtt_s, rtt_s / 2, False))

    def missed(self, identifier: NodeId) -> None:
        """An acknowledgement did not come in time."""
        trip = self._trips.get(identifier)
        if trip is not None:
            trip.missed = min(trip.missed + 1, 8)

    def forget(self, identifier: NodeId) -> None:
        self._trips.pop(identifier, None)

    def rtt_s(self, identifier: NodeId) -> float | None:
        """The smoothed round trip in seconds, None where nobody has measured it."""
        trip = self._trips.get(identifier)
        return trip.smoothed_s if trip is not None else None

    def ack_timeout_s(self, identifier: NodeId) -> float:
        """How long the next acknowledgement may take."""
        trip, p = self._trips.get(identifier), self._parameters
        if trip is None:
            return p.delay_max_s
        patient_s = max(trip.smoothed_s + 4 * trip.deviation_s, p.ack_timeout_min_s)
        return float(min(patient_s * 2**trip.missed, p.probe_timeout_s))

    def _keep(self, identifier: NodeId, trip: _RoundTrip) -> None:
        self._trips[identifier] = trip
        if len(self._trips) > self._parameters.remembered_lives_max:
            del self._trips[next(iter(self._trips))]
