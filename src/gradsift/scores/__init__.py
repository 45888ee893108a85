"""How much does an example matter? One number ≥ 0 for each, from the model as it is now."""

from gradsift.scores.base import AbstractOutputScore as AbstractOutputScore
from gradsift.scores.base import AbstractScore as AbstractScore
from gradsift.scores.doubt import Doubt as Doubt
from gradsift.scores.evaluate import score_examples as score_examples
from gradsift.scores.gradient_norm import GradientNorm as GradientNorm
from gradsift.scores.gradient_norm import register_rule as register_rule
from gradsift.scores.input_norm import InputNorm as InputNorm
from gradsift.scores.loss import Loss as Loss
from gradsift.scores.output_gradient import OutputGradient as OutputGradient
