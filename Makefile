# Everything runs in .venv, made by uv where it is present and by pip otherwise. Nothing needs root.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
S3_VENV := .venv-s3
S3_STAMP := $(S3_VENV)/.installed
PHOTOS ?= $(wildcard ../shared/datapack)

FETCH_VENV := .venv-img2dataset
FETCH_STAMP := $(FETCH_VENV)/.installed

.PHONY: setup s3-server img2dataset demo ui test gates photos clean

setup: $(STAMP) ## the environment, from constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then \
	  uv venv -q --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev,photos,signals,ray,seal,clusters]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q --disable-pip-version-check \
	    -c constraints.txt -e '.[dev,photos,signals,ray,seal,clusters]'; \
	fi
	@touch $@

s3-server: $(S3_STAMP) ## the S3 server that the system tests start on loopback

$(S3_STAMP): tests/s3-server.txt
	@if command -v uv >/dev/null; then \
	  uv venv -q --allow-existing --python $(PYTHON) $(S3_VENV) && \
	  uv pip install -q --python $(S3_VENV)/bin/python -r $<; \
	else \
	  $(PYTHON) -m venv $(S3_VENV) && $(S3_VENV)/bin/python -m pip install -q --disable-pip-version-check -r $<; \
	fi
	@touch $@

img2dataset: $(FETCH_STAMP) ## what `compalign land --urls` fetches with

$(FETCH_STAMP): deploy/img2dataset.txt
	@if command -v uv >/dev/null; then \
	  uv venv -q --allow-existing --python $(PYTHON) $(FETCH_VENV) && \
	  uv pip install -q --python $(FETCH_VENV)/bin/python -r $<; \
	else \
	  $(PYTHON) -m venv $(FETCH_VENV) && \
	  $(FETCH_VENV)/bin/python -m pip install -q --disable-pip-version-check -r $<; \
	fi
	@touch $@

demo: setup ## land the sample crawl and materialise everything
	@$(BIN)/compalign demo

ui: setup ## the Dagster UI on the same instance, sensors running, pages served on loopback
	@$(BIN)/compalign ui

test: setup s3-server gates ## the gates: format, lint, types, import contracts, definitions, tests, wheel

gates:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/dagster definitions validate -w workspace.yaml
	$(BIN)/python -m pytest
	$(BIN)/python .ci/check_wheel.py

photos: setup ## the photos profile, end to end (needs the data pack; PHOTOS=folder)
	@test -n "$(PHOTOS)" || { echo "no data pack: make photos PHOTOS=FOLDER"; exit 2; }
	@COMPALIGN_PROFILE=photos $(BIN)/compalign photo-crawl --datapack "$(PHOTOS)" --out var/photos
	@COMPALIGN_PROFILE=photos $(BIN)/compalign demo

clean: ## everything that was made here
	rm -rf $(VENV) $(S3_VENV) $(FETCH_VENV) .venv-data-juicer var dist build
