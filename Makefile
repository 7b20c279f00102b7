# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := out/demo

.PHONY: demo test lint picture clean

demo: $(STAMP)
	rm -rf $(DEMO)
	$(BIN)/causal-dfq quantize resnet20-fashion --bits w4a4 --effort fast --out $(DEMO)
	$(BIN)/causal-dfq evaluate $(DEMO) --data demo/fashion_mnist_2000.npz --json $(DEMO)/evaluation.json

test: $(STAMP) lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,timm]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) out build

picture: $(STAMP)
	rm -rf out/picture
	$(BIN)/causal-dfq quantize resnet20-cifar10 --bits w4a4 --effort balanced --out out/picture
	cp out/picture/samples.png docs/samples.png
