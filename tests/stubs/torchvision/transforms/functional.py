"""Names that timm and transformers import."""

from enum import Enum

import numpy as np
import torch


class InterpolationMode(Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def to_tensor(picture):
    return torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1) / 255


def pil_to_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
