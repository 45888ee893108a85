"""Where examples come from: stable ids whatever shuffles the data, and readers of real data."""
