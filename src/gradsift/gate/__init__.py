"""When examples are chosen by score, and how: published switches, and one that measures."""

from gradsift.gate.measured import Decision as Decision
from gradsift.gate.measured import MeasuredGate as MeasuredGate
from gradsift.gate.measured import Offer as Offer
from gradsift.gate.measured import gain as gain
from gradsift.gate.published import AbstractGate as AbstractGate
from gradsift.gate.published import ConstantTime as ConstantTime
from gradsift.gate.published import ConstantVariance as ConstantVariance
from gradsift.gate.published import GateState as GateState
from gradsift.gate.published import TauThreshold as TauThreshold
