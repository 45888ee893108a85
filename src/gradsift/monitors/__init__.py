"""What is measured while training: moments, variances, logs. Monitors read and never steer."""

from gradsift.monitors.averages import Estimate as Estimate
from gradsift.monitors.averages import RatioAverage as RatioAverage
from gradsift.monitors.calibration import Calibration as Calibration
from gradsift.monitors.calibration import Noise as Noise
from gradsift.monitors.log import AbstractLog as AbstractLog
from gradsift.monitors.log import JsonLines as JsonLines
from gradsift.monitors.log import NullLog as NullLog
from gradsift.monitors.moments import SecondMoments as SecondMoments
from gradsift.monitors.moments import effective_sample_size as effective_sample_size
from gradsift.monitors.moments import second_moments as second_moments
from gradsift.monitors.moments import tau as tau
from gradsift.monitors.prices import Prices as Prices
from gradsift.monitors.prices import pool_ratio_measured as pool_ratio_measured
from gradsift.monitors.proposals import Proposal as Proposal
from gradsift.monitors.proposals import ProposalGrid as ProposalGrid
from gradsift.monitors.variance import break_even_tau as break_even_tau
from gradsift.monitors.variance import pool_ratio_capped as pool_ratio_capped
from gradsift.monitors.variance import pool_ratio_with_replacement as pool_ratio_with_replacement
from gradsift.monitors.variance import two_step_variance as two_step_variance
