"""The processes of one run: what they tell each other, how they begin and end together."""

from tutelage.ranks.group import ALONE, Ranks

__all__ = ["ALONE", "Ranks"]
