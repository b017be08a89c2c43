# One command for everything: `make demo`, `make test`, `make check`.
# Needs a Python 3.11 or newer with pip, and nothing else.
PYTHON ?= python3
VENV   := .venv
OVERLAY := .venv-transformers4
# What a bare GPU machine has: its Python, and its torch and transformers (requirements-torch211.in).
TORCH211 := .venv-torch211
PYTHON312 ?= 3.12
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
# uv shows its progress on a terminal; a log gets the lines that say what happens.
QUIET  := $(shell test -t 2 || echo --quiet)
INSTALL := $(UV) pip install $(QUIET) --python $(BIN)/python

.PHONY: setup setup-dev demo quickstart docs pictures browser test test-torch211 quick durations check chaos conformance lint types layers format lock relock clean

# What patchmint runs on; and what its tests and checks need on top.
setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

# The stamps make each idempotent: it runs again only when a lock or the package's metadata changes.
$(UV): requirements-uv.lock
	@echo "Making $(VENV) with uv, which installs the rest" >&2
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	touch $@

$(VENV)/.ready: $(UV) requirements.lock pyproject.toml
	@echo "Installing patchmint: 3.4 GB to download, mostly torch with CUDA, and 6.5 GB on disk; about 6 minutes at 100 Mbit/s" >&2
	$(INSTALL) --compile-bytecode --require-hashes -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.lock requirements-transformers4.lock
	@echo "Installing what the tests need: another 0.4 GB to download, and 1 GB on disk" >&2
	$(INSTALL) --compile-bytecode --require-hashes -r requirements-dev.lock
	$(INSTALL) --target $(OVERLAY) --no-deps --require-hashes -r requirements-transformers4.lock
	touch $@

# Scenes with known truth through the whole job, with the models that come with the package, and a score.
demo: setup
	$(BIN)/patchmint demo out/demo

# The main job on bundled photographs, with models that need no download.
quickstart: setup-dev
	$(BIN)/python examples/photographs.py out/photographs
	$(BIN)/patchmint build examples/quickstart.yaml
	$(BIN)/patchmint inspect verify out/quickstart --deep

# The documentation as a site in out/site, with a gallery of demo scenes; the network isn't used.
docs: setup-dev
	$(BIN)/python -m tools.docs_site

# README's pictures, from the demo models; the gallery's is taken in the Chromium that its tests use.
pictures: browser
	$(BIN)/python -m tools.readme_picture docs/images/overview.webp
	PYTHONPATH=tests $(BIN)/python -m tools.gallery_picture docs/images/gallery.webp

# The gallery is tested in a real Chromium: where there is none, Debian's is installed, if we may.
browser: setup-dev
	@$(BIN)/python tests/browser.py 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	apt-get install -y -qq --no-install-recommends chromium-headless-shell; } || true
	@$(BIN)/python tests/browser.py

# Four groups at once, each with one thread: many tests wait for processes and clocks. Threads of a build's workers don't
# spin while they wait: where there are more threads than cores, that takes the time of those that work.
# glibc keeps up to 2 GiB of freed blocks, which the next pass of a model would only have to be given, and cleared, again.
# Python may keep byte code, or each of some hundred processes would compile the package anew.
TESTS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648 \
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 4

test: setup-dev
	$(TESTS)

$(TORCH211)/.ready: $(UV) requirements-torch211.lock
	@echo "Making $(TORCH211) for another torch: 2.8 GB to download" >&2
	test -x $(TORCH211)/bin/python || $(UV) venv $(QUIET) --python $(PYTHON312) $(TORCH211)
	$(UV) pip install $(QUIET) --python $(TORCH211)/bin/python --require-hashes -r requirements-torch211.lock
	touch $@

# The models, what is compiled of them, and their kernels on paper, as on a GPU machine; not part of `make test`.
test-torch211: $(TORCH211)/.ready
	OMP_NUM_THREADS=1 $(TORCH211)/bin/python -m pytest -n 0 $(patsubst %,tests/test_%.py,$(TORCH211_TESTS))
TORCH211_TESTS := compiled gpu_benchmark gpu_paper kernels grounding_dino grounding_dino_speed sam sam_speed vqgan vit

# Without models of official size, Ray, Chromium and kills, and without what takes longer than half a second.
quick: setup-dev
	$(TESTS) --quick -m "not (official or ray or browser or kill)"

# Which tests take longest, so that they start first, and which are slow: tests/durations.json.
durations: setup-dev
	$(TESTS) --measure

check: lint types layers test

# Ten thousand builds in simulated time in which everything goes wrong; `make test` runs 300.
chaos: setup-dev
	cd tests && PYTHONPATH=.. $(abspath $(BIN))/python -m simulation.run --seeds 10000

# Five other readers on our shards, as lists and as folders, and the blocks of docs/training.md; then builds of what
# `datasets` writes. Some need environments of their own, made below .venv-conformance.
conformance: setup-dev
	$(BIN)/python tests/conformance/run.py

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-dev
	$(BIN)/mypy

layers: setup-dev
	$(BIN)/lint-imports

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# `relock` adds and drops what the requirements do, and keeps every other version; `lock` takes new versions on purpose.
# --no-emit-index-url keeps registry addresses out of the locks.
COMPILE = $(UV) pip compile --quiet $(UPGRADE) --generate-hashes --universal --python-version 3.11 --no-emit-index-url
COMPILE12 = $(subst 3.11,3.12,$(COMPILE))
lock: UPGRADE := --upgrade
lock relock: $(UV)
	$(COMPILE) requirements-uv.in -o requirements-uv.lock
	$(COMPILE) pyproject.toml -o requirements.lock
	$(COMPILE) pyproject.toml --extra dev --constraints requirements.lock -o requirements-dev.lock
	$(COMPILE) requirements-transformers4.in --no-deps -o requirements-transformers4.lock
	$(COMPILE12) pyproject.toml --extra dev --override requirements-torch211.in -o requirements-torch211.lock
	for reader in datasets tools; do $(COMPILE) tests/conformance/requirements-$$reader.in -o tests/conformance/requirements-$$reader.lock; done
	for reader in ray wids energon; do $(COMPILE) tests/conformance/requirements-$$reader.in --no-deps -o tests/conformance/requirements-$$reader.lock; done

clean:
	rm -rf $(VENV) $(OVERLAY) $(TORCH211) .venv-conformance build dist *.egg-info
