"""Says in sentences what a comparison shows: which models differ from the reference, and what the omics add."""

from __future__ import annotations

from collections.abc import Sequence

from momkd_ray.compare.leaderboard import Interval, Leaderboard, Row
from momkd_ray.report.omics import omics_pairs
from momkd_ray.statistics.percentiles import NO_WIDTH


def conclusions(leaderboard: Leaderboard) -> list[str]:
    """Returns a sentence on the models beside the reference, and one on each model with and without omics."""
    compared = [row for row in leaderboard.rows if row.headline.difference is not None]
    if not compared:
        return []
    sentences = [_against_reference(compared, leaderboard.reference)]
    return sentences + [_omics_sentence(without, with_omics) for without, with_omics in omics_pairs(leaderboard.rows)]


def omics_gain(without: Row, with_omics: Row) -> tuple[float, Interval | None]:
    """Returns what the omics add to the pooled metric, and its 95 % interval; None if neither row is the reference."""
    gain = with_omics.headline.pooled - without.headline.pooled
    if with_omics.headline.difference is None and without.headline.difference_interval is not None:
        low, high = without.headline.difference_interval
        return gain, (-high, -low)
    if without.headline.difference is None:
        return gain, with_omics.headline.difference_interval
    return gain, None


def _against_reference(compared: Sequence[Row], reference: str) -> str:
    measure = f"pooled {compared[0].headline.name}"
    groups: dict[str, list[str]] = {"above": [], "below": [], "neither": []}
    known = [row for row in compared if row.headline.difference_interval is not None]
    unknown = [f"'{row.label}'" for row in compared if row.headline.difference_interval is None]
    none = f"for {', '.join(unknown)} there is none, as {NO_WIDTH}"
    if not known:
        return f"Beside {reference}, of the 95 % intervals of the difference in {measure} {none}."
    for row in known:
        groups[_side(row.headline.difference_interval)].append(f"'{row.label}'")
    told = [f"{side} 0 for {', '.join(groups[side])}" for side in ("above", "below") if groups[side]]
    if not told:
        every = f"every other model; {none}" if unknown else "every model"
        return f"Beside {reference}, the 95 % interval of the difference in {measure} includes 0 for {every}."
    rest = f"; for {', '.join(groups['neither'])} it includes 0" if groups["neither"] else ""
    rest += f"; {none}" if unknown else ""
    return f"Beside {reference}, the 95 % interval of the difference in {measure} is {' and '.join(told)}{rest}."


def _side(interval: Interval | None) -> str:
    assert interval is not None
    low, high = interval
    return "above" if low > 0 else "below" if high < 0 else "neither"


def _omics_sentence(without: Row, with_omics: Row) -> str:
    gain, interval = omics_gain(without, with_omics)
    measured = f"The omics changed the pooled {with_omics.headline.name} of {with_omics.label} by {gain:+.3f}"
    if interval is None and None in (without.headline.difference, with_omics.headline.difference):
        return f"{measured}, which has no interval, as {NO_WIDTH}."
    if interval is None:
        return f"{measured}; for the interval of that, set compare.reference to it."
    ends = {
        "above": "a gain",
        "below": "a loss",
        "neither": "which shows neither a gain nor a loss",
    }
    return f"{measured} [{interval[0]:+.3f}, {interval[1]:+.3f}], {ends[_side(interval)]}."
