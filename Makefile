# Everything from a bare Python with pip. `make help` lists what there is.
PYTHON ?= python3
# torch is installed for one Python only; the others test the engine and get_local without it.
TORCH_PYTHON ?= 3.11
# Pythons whose absence is an error, as 3.11,3.12; otherwise whatever is found is used.
REQUIRE ?=
DEV := .venv/$(TORCH_PYTHON)/bin
ASSETS := head.png heads.png grids.png mosaic.png rollout.png

.PHONY: help demo test corpus fuzz lint format bench assets notebook model clean

help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/	/' | expand -t 12

demo: .venv/demo/ready  ## Draw the attention of the bundled model into visualizer_demo/
	.venv/demo/bin/visualizer demo

.venv/demo/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv/demo
	.venv/demo/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv/demo/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

test:  ## All tests, on every Python found, each in a fresh virtual environment
	$(PYTHON) tools/everywhere.py --torch-python $(TORCH_PYTHON) $(if $(REQUIRE),--require $(REQUIRE)) \
		--fresh -- pytest -n auto --dist worksteal

corpus: ## CPython's own tests with every function instrumented, on every Python found (an hour)
	$(PYTHON) tools/everywhere.py --torch-python $(TORCH_PYTHON) -- python -m tests.corpus cpython

fuzz:  ## 10,000 random functions on every Python found
	VISUALIZER_EXAMPLES=10000 $(PYTHON) tools/everywhere.py --torch-python $(TORCH_PYTHON) \
		-- pytest tests/rewrite/test_random_functions.py

lint: $(DEV)/ruff  ## ruff, mypy --strict and the order of the layers
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/mypy
	$(DEV)/lint-imports

format: $(DEV)/ruff  ## Format the code
	$(DEV)/ruff check --fix .
	$(DEV)/ruff format .

bench: $(DEV)/ruff  ## The benchmarks
	$(DEV)/python -m benchmarks overhead
	$(DEV)/python -m benchmarks pointing
	$(DEV)/python -m benchmarks attention
	$(DEV)/python -m benchmarks store

assets: $(DEV)/ruff  ## The pictures of the README
	$(DEV)/visualizer demo --out build/demo
	mkdir -p assets
	cd build/demo && cp $(ASSETS) ../../assets

notebook: $(DEV)/ruff  ## Run demo.ipynb from top to bottom and store its outputs
	PYTHONPATH=tests/stubs $(DEV)/python tools/run_notebook.py demo.ipynb

model: $(DEV)/ruff  ## Train the bundled model anew (ten minutes)
	$(DEV)/python -m visualizer.demo.train

$(DEV)/ruff:
	$(PYTHON) tools/everywhere.py --torch-python $(TORCH_PYTHON) --only $(TORCH_PYTHON) -- true

clean:  ## Remove the virtual environments and what building left
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
