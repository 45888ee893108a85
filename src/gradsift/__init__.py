"""Train on the examples that matter, with weights that keep the gradient unbiased."""

from importlib.metadata import version as _version

from gradsift import monitors as monitors
from gradsift import parallel as parallel
from gradsift import predictor as predictor
from gradsift import rules as rules
from gradsift import scores as scores
from gradsift.engine import engines as engines
from gradsift.errors import DataError as DataError
from gradsift.errors import TrainingError as TrainingError
from gradsift.errors import UsageError as UsageError
from gradsift.fitting import Holdout as Holdout
from gradsift.fitting import recalibrate_batch_norm as recalibrate_batch_norm
from gradsift.loader import SiftedLoader as SiftedLoader
from gradsift.loader import sift as sift
from gradsift.prospect import Prospects as Prospects
from gradsift.prospect import probe as probe
from gradsift.recipes import Recipe as Recipe
from gradsift.recipes import recipes as recipes
from gradsift.records import Draw as Draw
from gradsift.records import WeightedBatch as WeightedBatch
from gradsift.sampling import corrections as corrections
from gradsift.sampling import distributions as distributions
from gradsift.sampling import draws as draws
from gradsift.sampling import resampling as resampling
from gradsift.sampling import smoothing as smoothing
from gradsift.sampling.table import ScoreTable as ScoreTable

__version__ = _version("gradsift")
