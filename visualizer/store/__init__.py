"""Values on the disk that survive: written in units, each whole or not there at all."""

from visualizer.store.exported import Export, LeftOut
from visualizer.store.index import Row
from visualizer.store.reader import Damage, Store
from visualizer.store.saving import Saving
from visualizer.store.values import Fields, Skipped
from visualizer.store.verify import Report, verify
from visualizer.store.writer import StoreWriter

__all__ = [
    "Damage",
    "Export",
    "Fields",
    "LeftOut",
    "Report",
    "Row",
    "Saving",
    "Skipped",
    "Store",
    "StoreWriter",
    "verify",
]
