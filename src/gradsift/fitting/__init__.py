"""What is fitted beside the training: BatchNorm's statistics, and models for held-out losses."""

from gradsift.fitting.batch_norm import recalibrate_batch_norm as recalibrate_batch_norm
from gradsift.fitting.held_out import Holdout as Holdout
