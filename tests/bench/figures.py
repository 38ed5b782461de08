"""Samples and what is said of them: the median, and the interval that holds it with 95 % (order statistics)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured thing beside its baseline. unit of both; aim: what is wanted, in words, "" for none."""

    name: str
    unit: str
    ours: Sequence[float]
    baseline: Sequence[float]
    beside: str
    aim: str = ""

    def row(self) -> str:
        return (
            f"| {self.name} | {shown(self.ours)} {self.unit} | {self.beside}: {shown(self.baseline)} {self.unit} | {self.aim} |"
        )


def shown(samples: Sequence[float]) -> str:
    if not samples:
        return "–"
    low, high = interval(samples)
    return f"{statistics.median(samples):.3g} [{low:.3g}, {high:.3g}] (n={len(samples)})"


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """Bounds of the median's 95 % interval, from the binomial distribution of ranks."""
    ordered = sorted(samples)
    half = 1.96 * math.sqrt(len(ordered)) / 2
    low = max(0, math.floor(len(ordered) / 2 - half))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + half))
    return ordered[low], ordered[high]
