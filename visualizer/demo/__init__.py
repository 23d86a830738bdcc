"""A trained vision transformer and pictures it has never seen, to try everything on."""

from visualizer.demo.loading import load_model, load_scenes, preprocess
from visualizer.demo.model import VisionTransformer
from visualizer.demo.scenes import Scenes

__all__ = ["Scenes", "VisionTransformer", "load_model", "load_scenes", "preprocess"]
