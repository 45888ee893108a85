"""Recipes and settings against each other: equal budgets, paired seeds, honest seconds.

Every run is a process of its own, ``gradsift train …``, so that no arm inherits caches, threads
or memory from the one before it.
"""
