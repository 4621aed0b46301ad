# Every target makes its own environment in .venv; it needs Python 3.11, pip, a C++ compiler and make.
#   make demo        prepare a small corpus and pretrain a GPT on two ranks (minutes on two cores)
#   make test        static checks and all tests that need neither minutes each nor a GPU
#   make check       static checks only
#   make test-slow   the tests that take minutes, and the layouts that `make test` leaves out
#   make gpu         on a machine with a GPU: its tests, and in eight minutes a table of what training costs there
#   make gpu-dry     the table with a toy of a model on a CPU: whether it would work
#   make gpu-rig     there, too: the tests of layers and of training over NCCL
#   make bench       every benchmark; tables on the console, JSON in benchmarks/results
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Package index for torch alone, for example PyTorch's own index of CPU builds. Empty: pip's configuration.
TORCH_INDEX ?=
# Without those that draw or look at a run that exists already, and those that need data, a synthesizer or a GPU.
BENCHMARKS := $(filter-out %/rehearsal_plot.py %/tev_formulas.py %_depth.py %/spoken_digits.py %/spoken_times.py \
	%/forecasting.py %/gpu.py %/gpu_sections.py, \
	$(wildcard benchmarks/*.py))
# Processes that run tests side by side. Many tests wait for ranks or launchers that they have started.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check test-slow gpu gpu-dry gpu-rig bench clean

demo: $(READY)
	$(BIN)/surefoot prepare text python-stdlib --out data/demo --vocabulary-size 2048 --sequence-length 128 \
		--validation-fraction 0.01
	$(BIN)/surefoot train configs/gpt/demo.toml --num-accelerators 2
	@echo "What the model has learned to write:"
	$(BIN)/surefoot generate runs/demo --prompt 'def ' --temperature 0.5 --max-tokens 120
	@echo "To see a run that slips and is taken back, in two minutes:"
	@echo "  $(BIN)/surefoot rehearse configs/gpt/rehearsal.toml --num-accelerators 2 --fault poisoned_samples@400+40"

test: check
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses $(WORKERS) --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu"

gpu: $(READY)
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py

gpu-dry: $(READY)
	$(BIN)/python benchmarks/gpu.py --dry

gpu-rig: $(READY)
	SUREFOOT_TEST_DEVICE=cuda $(BIN)/python -m pytest -m "not slow and not gpu" tests/parallel tests/pretrain --numprocesses $(WORKERS)

bench: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable ".[dev,plots]"
	mkdir -p benchmarks/results
	set -e; for script in $(BENCHMARKS); do $(BIN)/python $$script; done

# torch comes first and alone: a plain resolve could fetch it again in another build, gigabytes each time.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
