"""A small problem, the settings of a short run on it, and a watcher: for the trainer's tests."""

import json

import torch
from torch.utils.data import TensorDataset

from gradsift.budget import Budget
from gradsift.clock import VirtualClock
from gradsift.data.problem import from_datasets
from gradsift.trainer import AbstractProgress, Settings

COST = 1.0 / 1024
BATCH = 16


def blobs(count=100, seed=0):
    """Three overlapping clouds in four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    centres = 1.5 * torch.eye(3, 4)
    return TensorDataset(centres[labels] + torch.randn(count, 4, generator=generator), labels)


def toy():
    return from_datasets("blobs", blobs(), blobs(30, seed=1))


def settings(steps=12, **changes):
    values = {
        "recipe": "uniform",
        "model": "linear",
        "batch_size": BATCH,
        "budget": Budget("steps", steps),
    }
    return Settings(**{**values, **changes})


def virtual():
    return VirtualClock(train=COST, score=COST / 4)


def lines(folder, kind):
    text = (folder / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


class Calls(AbstractProgress):
    """Remembers what it is told, and may do something after a step."""

    def __init__(self, after=lambda step: None):
        self.after = after
        self.shares = []
        self.points = []

    def moved(self, share, step):
        self.shares.append(share)
        self.after(step)

    def evaluated(self, point):
        self.points.append(point)
