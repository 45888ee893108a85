"""Rules that pick the examples of the coming steps by the history of all scores.

Each is a published method that is no product of score, distribution and draw. They belong to
recipes with ``source="history"``, and most of them are biased on purpose; each says how.
"""

from gradsift.rules.base import AbstractPicker as AbstractPicker
from gradsift.rules.base import AbstractRule as AbstractRule
from gradsift.rules.budgeted import Budgeted as Budgeted
from gradsift.rules.fixed import Fixed as Fixed
from gradsift.rules.gaussian import ClassGaussian as ClassGaussian
from gradsift.rules.hidden import Hidden as Hidden
from gradsift.rules.learnt import LearntClasses as LearntClasses
from gradsift.rules.prioritised import Prioritised as Prioritised
from gradsift.rules.pruned import InfoBatch as InfoBatch
from gradsift.rules.ranked import RankedByLoss as RankedByLoss
from gradsift.rules.rounds import RandomSubset as RandomSubset
