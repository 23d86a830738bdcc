"""Attention maps from what a call of attention was given: lazy, exact, never whole in memory."""

from visualizer.attention.attention_map import AttentionMap
from visualizer.attention.call import AttentionCall
from visualizer.attention.gradient import OutputGradient
from visualizer.attention.mask import Mask
from visualizer.attention.record import ArrayRecord, MapRecord
from visualizer.attention.rows import weights_of_rows
from visualizer.attention.steps import join_steps
from visualizer.attention.stream import Block
from visualizer.attention.unobserved import is_unobserved, unobserved

__all__ = [
    "ArrayRecord",
    "AttentionCall",
    "AttentionMap",
    "Block",
    "MapRecord",
    "Mask",
    "OutputGradient",
    "is_unobserved",
    "join_steps",
    "unobserved",
    "weights_of_rows",
]
