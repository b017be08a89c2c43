# One command for everything: `make setup`, `make test`, `make check`.
# Needs a Python 3.11 or newer with pip, and nothing else.
PYTHON ?= python3
VENV   := .venv
OVERLAY := .venv-transformers4
BIN    := $(VENV)/bin
UV     := $(BIN)/uv

.PHONY: setup demo quickstart docs pictures browser test quick durations check conformance lint types layers format lock clean

setup: $(VENV)/.ready

# The stamp makes setup idempotent: it runs again only when a lock or the package's metadata changes.
$(VENV)/.ready: requirements.lock requirements-uv.lock requirements-transformers4.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	$(UV) pip install --quiet --python $(BIN)/python --target $(OVERLAY) --no-deps --require-hashes -r requirements-transformers4.lock
	touch $@

# Scenes with known truth through the whole job, with the models that come with the package, and a score.
demo: setup
	$(BIN)/patchmint demo out/demo

# The main job on bundled photographs, with models that need no download.
quickstart: setup
	$(BIN)/python examples/photographs.py out/photographs
	$(BIN)/patchmint build examples/quickstart.yaml
	$(BIN)/patchmint inspect verify out/quickstart --deep

# The documentation as a site in out/site, with a gallery of demo scenes; the network isn't used.
docs: setup
	$(BIN)/python -m tools.docs_site

# README's pictures, from the demo models; the gallery's is taken in the Chromium that its tests use.
pictures: setup browser
	$(BIN)/python -m tools.readme_picture docs/images/overview.webp
	PYTHONPATH=tests $(BIN)/python -m tools.gallery_picture docs/images/gallery.webp

# The gallery is tested in a real Chromium: where there is none, Debian's is installed, if we may.
browser: setup
	@$(BIN)/python tests/browser.py 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	apt-get install -y -qq --no-install-recommends chromium-headless-shell; } || true
	@$(BIN)/python tests/browser.py

# Three groups at once, each with one thread: many tests wait for processes and clocks. Threads of a build's workers don't
# spin while they wait: where there are more threads than cores, that takes the time of those that work.
# glibc keeps up to 2 GiB of freed blocks, which the next pass of a model would only have to be given, and cleared, again.
# Python may keep byte code, or each of some hundred processes would compile the package anew.
TESTS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648 \
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3

test: setup
	$(TESTS)

# Without models of official size, Ray, Chromium and kills.
quick: setup
	$(TESTS) -m "not official and not ray and not browser and not kill"

# Which tests take longest, so that they start first: tests/durations.json.
durations: setup
	$(TESTS) --measure

check: lint types layers test

# Five other readers on our shards; some need environments of their own, made below .venv-conformance.
conformance: setup
	$(BIN)/python tests/conformance/run.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Takes new versions on purpose; --no-emit-index-url keeps registry addresses out of the locks.
lock: setup
	$(UV) pip compile requirements-uv.in --upgrade --generate-hashes --universal --no-emit-index-url -o requirements-uv.lock
	$(UV) pip compile pyproject.toml --extra dev --upgrade --generate-hashes --universal --python-version 3.11 --no-emit-index-url -o requirements.lock
	$(UV) pip compile requirements-transformers4.in --upgrade --no-deps --generate-hashes --universal --python-version 3.11 --no-emit-index-url -o requirements-transformers4.lock
	$(UV) pip compile tests/conformance/requirements-datasets.in --upgrade --generate-hashes --universal --python-version 3.11 --no-emit-index-url -o tests/conformance/requirements-datasets.lock
	for reader in ray wids energon; do $(UV) pip compile tests/conformance/requirements-$$reader.in --upgrade --no-deps --generate-hashes --universal --python-version 3.11 --no-emit-index-url -o tests/conformance/requirements-$$reader.lock; done

clean:
	rm -rf $(VENV) $(OVERLAY) .venv-conformance build dist *.egg-info
