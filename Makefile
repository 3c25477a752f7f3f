# `make demo` and `make test` do all the set-up; `make help` lists the targets.
VENV := $(or $(SQAP_VENV),$(CURDIR)/.venv)
RUN := "$(VENV)/bin/python"
# `make gpu` sets nothing up, since such a machine may have no network: it takes the system's python3 where there is no .venv
PYTHON ?= $(RUN)
GPU_PYTHON := $(if $(filter file,$(origin PYTHON)),$(if $(wildcard $(VENV)/bin/python),$(RUN),python3),$(PYTHON))
OUT ?= benchmarks/results/gpu

export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
ifdef ROS_DISTRO  # the system's ROS 2 looks for the messages of the virtual environment along these
export AMENT_PREFIX_PATH := $(VENV):$(AMENT_PREFIX_PATH)
export LD_LIBRARY_PATH := $(VENV)/lib:$(LD_LIBRARY_PATH)
endif

.PHONY: help setup demo test pytest ray gpu wheel lint structure format clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' "$(firstword $(MAKEFILE_LIST))"

setup:  ## make the virtual environment, with ROS 2 and the messages: minutes at first, seconds later
	@scripts/setup.sh

demo: setup  ## run a simulated arm under the compressed policy: make demo TASK="pick up the red cube"
	@$(RUN) -m sqap_vla_ros.cli demo $(if $(TASK),--instruction "$$TASK") $(ARGS)

test: setup lint pytest  ## check everything that CI checks

pytest: setup  ## run tests alone: make pytest ARGS="test/robot -k camera"
	@$(RUN) -m pytest -n 2 --dist loadgroup $(ARGS)

ray: setup  ## run the tests over a Ray cluster, which `make test` skips: installs Ray at first, 280 MB
	@SQAP_VENV="$(VENV)" scripts/with_ray.sh -m pytest test/evaluation/closed_loop/test_study_ray.py \
	    test/evaluation/replay/test_replay_ray.py test/commands/test_endings.py -k ray $(ARGS)

gpu:  ## on a machine with a GPU, compare the kernels with their definitions and time everything: results in OUT
	@$(GPU_PYTHON) benchmarks/gpu.py --out "$(OUT)"

wheel: setup  ## install the wheel without ROS in an empty environment and predict there: downloads torch
	@PYTHON=$(PYTHON) scripts/try_wheel_without_ros.sh

lint: setup  ## run ruff and mypy
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

structure:  ## count files and lines by room, and name what breaks the rules of who may import whom
	@python3 scripts/structure.py

format: setup  ## rewrite the sources in the project's style
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

clean:  ## remove the virtual environment and everything generated
	rm -rf "$(VENV)" build install log out .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
