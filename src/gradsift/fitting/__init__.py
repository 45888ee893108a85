"""What a model needs between training and evaluation."""

from gradsift.fitting.batch_norm import recalibrate_batch_norm as recalibrate_batch_norm
