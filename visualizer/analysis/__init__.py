"""Numbers from attention weights: arrays or lazy maps in, arrays out, each from its paper."""

from visualizer.analysis.distance import attention_distance
from visualizer.analysis.entropy import entropy
from visualizer.analysis.mass import diagonal_mass, mass
from visualizer.analysis.relevance import head_importance, relevance
from visualizer.analysis.rollout import rollout
from visualizer.analysis.specialization import HeadStatistics, specialization

__all__ = [
    "HeadStatistics",
    "attention_distance",
    "diagonal_mass",
    "entropy",
    "head_importance",
    "mass",
    "relevance",
    "rollout",
    "specialization",
]
