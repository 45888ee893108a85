"""What is measured while training: moments, variances, logs. Monitors read and never steer."""

from gradsift.monitors.averages import Estimate as Estimate
from gradsift.monitors.averages import RatioAverage as RatioAverage
from gradsift.monitors.calibration import Calibration as Calibration
from gradsift.monitors.calibration import Noise as Noise
from gradsift.monitors.cost import Cost as Cost
from gradsift.monitors.health import Correlation as Correlation
from gradsift.monitors.health import Health as Health
from gradsift.monitors.health import HealthMonitor as HealthMonitor
from gradsift.monitors.health import correlation as correlation
from gradsift.monitors.health import relative_entropy as relative_entropy
from gradsift.monitors.health import top_share as top_share
from gradsift.monitors.history import History as History
from gradsift.monitors.history import read_history as read_history
from gradsift.monitors.history import write_history as write_history
from gradsift.monitors.log import AbstractLog as AbstractLog
from gradsift.monitors.log import JsonLines as JsonLines
from gradsift.monitors.log import NullLog as NullLog
from gradsift.monitors.log import SeveralLogs as SeveralLogs
from gradsift.monitors.moments import SecondMoments as SecondMoments
from gradsift.monitors.moments import effective_sample_size as effective_sample_size
from gradsift.monitors.moments import second_moments as second_moments
from gradsift.monitors.moments import tau as tau
from gradsift.monitors.prices import Prices as Prices
from gradsift.monitors.prices import pool_ratio_measured as pool_ratio_measured
from gradsift.monitors.proposals import Proposal as Proposal
from gradsift.monitors.proposals import ProposalGrid as ProposalGrid
from gradsift.monitors.recorder import HistoryRecorder as HistoryRecorder
from gradsift.monitors.recovered import RecoveredShare as RecoveredShare
from gradsift.monitors.sampled import TraceAverage as TraceAverage
from gradsift.monitors.sampled import mean_square_of_draws as mean_square_of_draws
from gradsift.monitors.sampled import sampled_trace_stratified as sampled_trace_stratified
from gradsift.monitors.sampled import (
    sampled_trace_without_replacement as sampled_trace_without_replacement,
)
from gradsift.monitors.sampled import sampled_traces as sampled_traces
from gradsift.monitors.traces import Traces as Traces
from gradsift.monitors.traces import pool_trace as pool_trace
from gradsift.monitors.traces import population_traces as population_traces
from gradsift.monitors.traces import stratified_trace as stratified_trace
from gradsift.monitors.traces import without_replacement_trace as without_replacement_trace
from gradsift.monitors.variance import break_even_tau as break_even_tau
from gradsift.monitors.variance import pool_ratio_capped as pool_ratio_capped
from gradsift.monitors.variance import pool_ratio_with_replacement as pool_ratio_with_replacement
from gradsift.monitors.variance import two_step_variance as two_step_variance
