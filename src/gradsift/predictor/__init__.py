"""Today's score of an example that was not looked at today, from what is known about it."""

from gradsift.predictor.settings import Forecasting as Forecasting
from gradsift.predictor.settings import Prediction as Prediction
