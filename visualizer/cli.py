"""The command line: `visualizer`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from visualizer import __version__
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
        print(f"visualizer: {error}", file=sys.stderr)
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
