"""Names that timm imports, and what its transform for evaluation does, with PIL alone."""

import torch

from torchvision.transforms.functional import InterpolationMode, to_tensor

__all__ = ["CenterCrop", "Compose", "InterpolationMode", "Normalize", "Resize", "ToTensor"]


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, value):
        for transform in self.transforms:
            value = transform(value)
        return value


class Resize:
    """The shorter side to a length, the other in proportion."""

    def __init__(self, size, interpolation=InterpolationMode.BILINEAR):
        self.size, self.interpolation = size, interpolation

    def __call__(self, picture):
        shorter = min(picture.size)
        wide, high = (round(side * self.size / shorter) for side in picture.size)
        filters = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
        return picture.resize((wide, high), filters[self.interpolation.value])


class CenterCrop:
    def __init__(self, size):
        self.high, self.wide = (size, size) if isinstance(size, int) else size

    def __call__(self, picture):
        left, top = (picture.width - self.wide) // 2, (picture.height - self.high) // 2
        return picture.crop((left, top, left + self.wide, top + self.high))


class ToTensor:
    def __call__(self, picture):
        return to_tensor(picture)


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = (torch.as_tensor(value).view(-1, 1, 1) for value in (mean, std))

    def __call__(self, tensor):
        return (tensor - self.mean) / self.std
