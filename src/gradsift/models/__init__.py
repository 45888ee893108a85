"""Small reference models for the command line, the demo and the benchmarks."""

from gradsift.models.build import FAMILIES as FAMILIES
from gradsift.models.build import build_model as build_model
from gradsift.models.build import describe as describe
from gradsift.models.build import norm_in_use as norm_in_use
