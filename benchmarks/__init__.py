"""What visualizer costs, measured: `python -m benchmarks --help`."""
