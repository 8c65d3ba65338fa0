# `make NAME` is `python tools/do.py NAME`, which works without make too and does all that is to be done.
# Another interpreter: make demo PYTHON=python3.13 (it is used when .venv is made; remove .venv to change it).
# SCALE=, ONLY=, NAMES= and TORCH= are handed on in the same way: make exports what its command line sets.
PYTHON ?= python3

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-newest test-lowest test-winlike test-faults test-flat install lab docs bench prepare pictures lock base base-texts

help demo test test-newest test-lowest test-winlike test-faults test-flat install lab docs bench prepare pictures lock base base-texts:
	@$(PYTHON) tools/do.py $@
