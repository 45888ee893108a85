"""Published methods as assemblies of parts, by name."""

from collections.abc import Iterator, Mapping

from gradsift.errors import UsageError
from gradsift.recipes.issgd import ISSGD, ISSGD_2015
from gradsift.recipes.katharopoulos2017 import EXACT_2017, KATHAROPOULOS_2017, UNBIASED_2017
from gradsift.recipes.katharopoulos2018 import CONSTANT_TIME, CONSTANT_VARIANCE, KATHAROPOULOS_2018
from gradsift.recipes.pool import LOSS, POOL
from gradsift.recipes.recipe import Recipe as Recipe
from gradsift.recipes.rivals import RIVALS
from gradsift.recipes.search import Search as Search
from gradsift.recipes.table import AUTO, TABLE, TABLE_EXACT, TABLE_FORECAST
from gradsift.recipes.uniform import UNIFORM, UNIFORM_IID


class Recipes(Mapping[str, Recipe]):
    """Recipes by name. An unknown name is a `UsageError` that lists the known ones.

    Example:
        >>> recipes["katharopoulos2018"].draw
        Multinomial()
    """

    def __init__(self, *entries: Recipe) -> None:
        self._entries = {entry.name: entry for entry in entries}

    def __getitem__(self, name: str) -> Recipe:
        if name not in self._entries:
            raise UsageError(
                f"recipe {name!r} is unknown, expected one of {', '.join(sorted(self))}"
            )
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


recipes = Recipes(
    AUTO,
    UNIFORM,
    UNIFORM_IID,
    TABLE,
    TABLE_EXACT,
    TABLE_FORECAST,
    LOSS,
    POOL,
    KATHAROPOULOS_2017,
    UNBIASED_2017,
    EXACT_2017,
    KATHAROPOULOS_2018,
    CONSTANT_VARIANCE,
    CONSTANT_TIME,
    ISSGD,
    ISSGD_2015,
    *RIVALS,
)
