"""New figures that show themselves in a notebook, without pyplot and its state."""

from __future__ import annotations

import io
import sys
from typing import Any, Final

import matplotlib.axes
import matplotlib.figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

__all__ = ["Axes", "Figure", "axes_of", "new_axes", "new_figure"]

_SMALLEST: Final = (4.8, 2.6)
_LARGEST: Final = 32.0

_waiting: list[Figure] = []  # made in the notebook cell that runs now, and not shown yet


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that needs no pyplot to be seen in a notebook."""

    def _ipython_display_(self) -> None:
        _waiting[:] = [figure for figure in _waiting if figure is not self]
        if _notebook() is None:
            print(self)
            return
        from IPython.display import display

        png = io.BytesIO()
        self.savefig(png, format="png")
        display({"image/png": png.getvalue(), "text/plain": str(self)}, raw=True)


class Axes(matplotlib.axes.Axes):
    """Axes that a notebook shows as the figure they are in."""

    def _ipython_display_(self) -> None:
        assert isinstance(self.figure, Figure)  # new_figure makes them, and nobody else does
        self.figure._ipython_display_()


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; sizes in inches.

    It belongs to no backend: nothing has to be closed. In a notebook it is shown at the end of the
    cell, as one is used to, unless it was shown before. Sizes are kept to what a title needs and
    what a screen can show.
    """
    size = (min(max(width, _SMALLEST[0]), _LARGEST), min(max(height, _SMALLEST[1]), _LARGEST))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    shell = _notebook()
    if shell is not None:
        shell.events.register("post_execute", _show_waiting)  # a second time does nothing
        _waiting.append(figure)
    return figure


def new_axes(figure: Figure, rows: int = 1, columns: int = 1) -> list[Axes]:
    """Return a figure's axes, row after row."""
    grid = figure.subplots(rows, columns, squeeze=False, subplot_kw={"axes_class": Axes})
    return list(grid.ravel())


def axes_of(ax: matplotlib.axes.Axes | None, width: float, height: float) -> matplotlib.axes.Axes:
    """Return the axes that were given, or those of a new figure."""
    return new_axes(new_figure(width, height))[0] if ax is None else ax


def _notebook() -> Any:
    """Return the shell of a Jupyter kernel, if this is one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


def _show_waiting() -> None:
    shell = _notebook()
    shell.events.unregister("post_execute", _show_waiting)
    figures, _waiting[:] = list(_waiting), []
    for figure in figures:
        try:
            figure._ipython_display_()
        except Exception:  # one that can't be drawn keeps none of the others from being seen
            shell.showtraceback()
