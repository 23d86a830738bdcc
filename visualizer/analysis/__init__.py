"""Numbers from attention weights: arrays or lazy maps in, arrays out, each from its paper."""

from visualizer.analysis.distance import attention_distance
from visualizer.analysis.entropy import effective_support, entropy
from visualizer.analysis.flow import AttentionFlow, attention_flow
from visualizer.analysis.induction import induction_score
from visualizer.analysis.largest import confidence, top_mass
from visualizer.analysis.mass import diagonal_mass, mass
from visualizer.analysis.positions import positional_profile, previous_token_score
from visualizer.analysis.received import received, sink_mass
from visualizer.analysis.relevance import head_importance, relevance
from visualizer.analysis.rollout import rollout
from visualizer.analysis.similarity import head_similarity
from visualizer.analysis.sparsity import sparsity
from visualizer.analysis.specialization import HeadStatistics, specialization

__all__ = [
    "AttentionFlow",
    "HeadStatistics",
    "attention_distance",
    "attention_flow",
    "confidence",
    "diagonal_mass",
    "effective_support",
    "entropy",
    "head_importance",
    "head_similarity",
    "induction_score",
    "mass",
    "positional_profile",
    "previous_token_score",
    "received",
    "relevance",
    "rollout",
    "sink_mass",
    "sparsity",
    "specialization",
    "top_mass",
]
