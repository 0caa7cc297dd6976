"""Covering designs: which pairs meet, and in which setting, where the full product would take too long.

Both functions are deterministic, and greedy: whoever has met the fewest so far comes next.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product

Pair = tuple[str, str]


def sample(pairs: Sequence[Pair], each_left: int, each_right: int, turn: int = 0) -> list[Pair]:
    """Some of the pairs, in their order: every name on the right (left) at least `each_right` (`each_left`) times.

    A name that has fewer pairs than that keeps them all. `turn`: another number prefers other pairs.
    """
    lefts, rights = (sorted({pair[place] for pair in pairs}) for place in (0, 1))
    chosen: set[Pair] = set()
    met: Counter[str] = Counter()

    def preference(pair: Pair) -> tuple[int, int]:
        return met[pair[0]] + met[pair[1]], (lefts.index(pair[0]) + rights.index(pair[1]) + turn) % len(lefts)

    for place, least in ((1, each_right), (0, each_left)):
        for _, name in product(range(least), (lefts, rights)[place]):
            left_over = [pair for pair in pairs if pair[place] == name and pair not in chosen]
            if met[name] < least and left_over:
                pair = min(left_over, key=preference)
                chosen.add(pair)
                met.update(pair)
    return [pair for pair in pairs if pair in chosen]


def spread(pairs: Sequence[Pair], settings: Sequence[tuple]) -> list[tuple]:
    """Every pair with one of the settings, such that each name meets each setting if it has pairs enough."""
    met: Counter[tuple] = Counter()
    cases = []
    for left, right in pairs:
        setting = min(settings, key=lambda setting: sorted((met[left, setting], met[right, setting])))
        met.update([(left, setting), (right, setting)])
        cases.append((left, right, *setting))
    return cases
