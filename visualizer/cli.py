"""The command line: `visualizer`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from visualizer import __version__
from visualizer._printable import printable
from visualizer.errors import VisualizerError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; an error that we foresaw ends in one line and status 1."""
    try:
        app()
    except VisualizerError as error:
        print(f"visualizer: {printable(error)}", file=sys.stderr)
        sys.exit(1)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"visualizer {__version__}")
        raise typer.Exit


@app.callback(help="Take values out of running model code, and look at them.")
def visualizer(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Hold the commands together, so that the only one still has a name."""


@app.command(
    short_help="Draw the attention of a vision transformer.",
    help="Draw the attention of a vision transformer. Without options: of the bundled one, which "
    "names the one whole handwritten digit in a scene of pieces, on scenes that it has never seen; "
    "no network is needed.",
)
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the figures go.")
    ] = Path("visualizer_demo"),
    image: Annotated[
        Optional[Path],  # noqa: UP045  typer reads it at run time
        typer.Option("--image", "-i", metavar="FILE", help="Your own picture."),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="A pretrained vision transformer, timm:NAME or hf:NAME, as "
            "timm:vit_small_patch16_224 or hf:google/vit-base-patch16-224.",
        ),
    ] = None,
) -> None:
    """Draw the attention of a vision transformer into a folder."""
    from visualizer.demo.tour import run_demo

    run_demo(out, image=image, model=model)


_STORE = typer.Argument(metavar="PATH", help="The folder that captured.save(…) made.")


@app.command(
    short_help="Show what is in a saved capture.",
    help="Show what is in a saved capture: the model, what was taken of it, and what is missing "
    "and why. Only the index is read.",
)
def inspect(path: Annotated[Path, _STORE]) -> None:
    """Show what is in a saved capture."""
    from visualizer.inspection import print_inspection

    print_inspection(path)


@app.command(
    short_help="Check that a saved capture is what was written.",
    help="Read everything in a saved capture, and hold it against the hashes that were written "
    "with it. The status is 1 where something is damaged; what can't be read for it is listed.",
)
def verify(
    path: Annotated[Path, _STORE],
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Move damaged units into PATH/quarantine.")
    ] = False,
) -> None:
    """Check that a saved capture is what was written."""
    from visualizer.store.verify import verify as verify_store

    report = verify_store(path, quarantine=quarantine)
    typer.echo(report)
    if quarantine and any(damage.unit is not None for damage in report.damages):
        typer.echo(f"  damaged units were moved into {printable(report.path / 'quarantine')}")
    if not report.ok:
        raise typer.Exit(1)
