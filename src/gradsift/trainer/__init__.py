"""One short training loop, for the command line, the demo and the benchmarks."""

from gradsift.trainer.parallel import run_parallel as run_parallel
from gradsift.trainer.progress import AbstractProgress as AbstractProgress
from gradsift.trainer.progress import Point as Point
from gradsift.trainer.run import Outcome as Outcome
from gradsift.trainer.run import run as run
from gradsift.trainer.settings import Settings as Settings
from gradsift.trainer.workers import Workers as Workers
