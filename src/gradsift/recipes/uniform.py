"""The two uniform arms. A comparison needs both: a shuffled epoch beats independent draws."""

from gradsift.recipes.recipe import Recipe

UNIFORM = Recipe(source="loader", name="uniform", reference="the loader's own order")
"""The user's own batches, untouched: the sifted loop is the plain loop, to the bit."""

UNIFORM_IID = Recipe(
    source="iid", name="uniform-iid", reference="Robbins & Monro 1951: independent uniform draws"
)
"""Independent uniform ids with replacement: the control that the papers compare with."""
