"""Stands in for torchvision where it can't be had: only the names that timm imports.

Nothing here does anything; timm's models import it and don't call it.
"""

__version__ = "0.0.0"
