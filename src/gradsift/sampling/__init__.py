"""From scores to examples and their weights: distributions, draws, corrections."""

from gradsift.sampling.corrections import AbstractCorrection as AbstractCorrection
from gradsift.sampling.corrections import Clip as Clip
from gradsift.sampling.corrections import Unweighted as Unweighted
from gradsift.sampling.distributions import AbstractDistribution as AbstractDistribution
from gradsift.sampling.distributions import Mixed as Mixed
from gradsift.sampling.distributions import Power as Power
from gradsift.sampling.distributions import Proportional as Proportional
from gradsift.sampling.distributions import Ranked as Ranked
from gradsift.sampling.draws import AbstractDraw as AbstractDraw
from gradsift.sampling.draws import Multinomial as Multinomial
from gradsift.sampling.draws import Poisson as Poisson
from gradsift.sampling.draws import Stratified as Stratified
from gradsift.sampling.draws import Systematic as Systematic
from gradsift.sampling.draws import TopK as TopK
from gradsift.sampling.inclusion import capped_inclusion as capped_inclusion
from gradsift.sampling.quarantine import CleanScores as CleanScores
from gradsift.sampling.quarantine import clean as clean
from gradsift.sampling.quarantine import neutralise as neutralise
from gradsift.sampling.select import select as select
from gradsift.sampling.table import ScoreTable as ScoreTable
