"""What a feature cache reports about itself."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, repr=False)
class CacheInfo:
    """What a feature cache holds.

    Attributes
    ----------
    path : pathlib.Path
        The folder of the cache.
    max_bytes : int
        The limit on `bytes`.
    rows : int
        Number of rows: one per image and recipe.
    bytes : int
        Bytes in use, bookkeeping included.
    file_bytes : int
        Size of the file: `bytes` and free pages, which later rows fill.
    recipes : dict of str to int
        Number of rows of each recipe.
    oldest, newest : datetime.datetime or None
        When the rows used longest ago and last were used, to about ten minutes.
    """

    path: Path
    max_bytes: int
    rows: int = 0
    bytes: int = 0
    file_bytes: int = 0
    recipes: dict = field(default_factory=dict)
    oldest: datetime.datetime | None = None
    newest: datetime.datetime | None = None

    def __repr__(self):
        used = f", used {self.oldest:%F %R} to {self.newest:%F %R}" if self.rows else ""
        return (
            f"<{self.path}: {self.rows:,} rows of {len(self.recipes):,} recipes, "
            f"{self.bytes / 1e6:,.1f} of at most {self.max_bytes / 1e6:,.1f} MB "
            f"(file {self.file_bytes / 1e6:,.1f} MB){used}>"
        )


@dataclass(frozen=True)
class CacheReport:
    """Outcome of `FeatureCache.verify`: `rows` are sound; `bad` ones were found and removed."""

    rows: int = 0
    bad: int = 0
