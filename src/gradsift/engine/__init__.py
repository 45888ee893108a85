"""Scoring beside the training step: in this process, in others, on other machines."""
