"""Exact per-example gradient norms: a rule for each kind of layer, and who runs them."""

from gradsift.scores.gradient_norm import attention as attention
from gradsift.scores.gradient_norm import convolution as convolution
from gradsift.scores.gradient_norm import embedding as embedding
from gradsift.scores.gradient_norm import linear as linear
from gradsift.scores.gradient_norm import normalization as normalization
from gradsift.scores.gradient_norm import recurrent as recurrent
from gradsift.scores.gradient_norm.contributions import AbstractContribution as AbstractContribution
from gradsift.scores.gradient_norm.contributions import Outer as Outer
from gradsift.scores.gradient_norm.contributions import Whole as Whole
from gradsift.scores.gradient_norm.rules import Use as Use
from gradsift.scores.gradient_norm.rules import register_rule as register_rule
from gradsift.scores.gradient_norm.score import GradientNorm as GradientNorm
