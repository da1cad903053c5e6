"""Which aggregate of a round's contributions becomes the step, and how many of them it needs: n contributions, of which f may be wrong.

    weighted_mean   n >= 1              one wrong contribution can move it anywhere
    median          n >= 1              withstands f < n / 2 (Yin et al., "Byzantine-robust distributed learning", ICML 2018)
    trimmed_mean    n >= 1              without the floor(trim n) least and greatest of each coordinate; withstands as many (ibid.)
    krum            n >= 2 f + 3        the m contributions nearest to their neighbours, averaged; withstands f (Blanchard et al.,
                    and n >= f + m      "Machine learning with adversaries", NeurIPS 2017: Krum is m = 1, Multi-Krum m > 1)

Torch-free, for the settings and the root ask it too; aggregates.py computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RuleName = Literal["weighted_mean", "median", "trimmed_mean", "krum"]


@dataclass(frozen=True, slots=True)
class AggregationRule:
    """trim: share cut off at either end, in [0, 0.5). byzantine: f. krum_selected: m."""

    name: RuleName = "weighted_mean"
    trim: float = 0.1
    byzantine: int = 1
    krum_selected: int = 1

    @property
    def contributions_min(self) -> int:
        """Fewer contributions than this cannot be aggregated so."""
        return max(2 * self.byzantine + 3, self.byzantine + self.krum_selected) if self.name == "krum" else 1

    def __str__(self) -> str:
        if self.name != "krum":
            return f"aggregation {self.name}"
        return f"aggregation krum with byzantine = {self.byzantine} and krum_selected = {self.krum_selected}"


WEIGHTED_MEAN = AggregationRule()
