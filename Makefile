# Two commands for a fresh machine with Python 3.11 or newer:
#
#   make book                  install, run the workshop study, build the book, print its address
#   make test                  install, run the tests
#
# Settings (make book STUDY=smoke JOBS=4):
#   STUDY=workshop             a study in studies/, or the path of your own YAML file
#   JOBS=2                     runs at a time
#   PYTHON=python3             the interpreter to start from
#   VENV=.venv                 where everything is installed
#   SYSTEM_SITE=1              build VENV over the interpreter's own packages, so that its torch + torchvision are kept
#   WHEELHOUSE=wheelhouse      install from this folder only, without network (make wheelhouse fills it)
#   TORCH_INDEX=URL            take torch + torchvision from this package index, for example one with CPU builds

PYTHON ?= python3
VENV ?= .venv
STUDY ?= workshop
JOBS ?= 2
SYSTEM_SITE ?=
WHEELHOUSE ?=
TORCH_INDEX ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
OFFLINE := $(if $(WHEELHOUSE),--no-index --find-links $(WHEELHOUSE))
TORCH_PINS := $(shell grep -E '^torch(vision)?==' requirements.txt)

# True where torch >= 2.11 is installed and torchvision works with it (an ill-matched pair fails in its first operator).
HAS_TORCH := import torch, torchvision; \
  torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5); \
  assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)

.PHONY: book test reference wheelhouse clean
.DELETE_ON_ERROR:

book: $(STAMP)
	@$(BIN)/mstl run $(STUDY) --jobs $(JOBS)
	@$(BIN)/mstl book $(STUDY)

test: $(STAMP)
	@$(BIN)/python -m pytest

# Installs once; again when the requirements change.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mstl needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1): name another, for instance make $(MAKECMDGOALS) PYTHON=python3.12." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(if $(SYSTEM_SITE),--system-site-packages) $(VENV)
	@if $(BIN)/python -c '$(HAS_TORCH)' 2>/dev/null; then \
	  echo "Keeping the torch and torchvision that are there." >&2; grep -vE '^torch(vision)?==' requirements.txt; \
	else cat requirements.txt; fi > $(VENV)/requirements.txt
	@$(if $(TORCH_INDEX),! grep -q '^torch==' $(VENV)/requirements.txt || $(PIP) install --quiet --index-url $(TORCH_INDEX) $(TORCH_PINS),:)
	@echo "Installing into $(VENV) …" >&2
	@$(PIP) install --quiet $(OFFLINE) -r $(VENV)/requirements.txt
	@$(PIP) install --quiet $(OFFLINE) --no-deps -e .
	@touch $@

# Everything a room without network needs: all requirements and what builds the project, as wheels. The project's own wheel is
# beside them, for machines that get the wheelhouse alone.
wheelhouse: $(STAMP)
	@mkdir -p wheelhouse
	$(if $(TORCH_INDEX),$(PIP) download --quiet --no-deps --index-url $(TORCH_INDEX) --dest wheelhouse $(TORCH_PINS))
	$(PIP) wheel --quiet --find-links wheelhouse --wheel-dir wheelhouse -r requirements.txt hatchling editables
	$(PIP) wheel --quiet --no-deps --find-links wheelhouse --wheel-dir wheelhouse .
	@echo "$$(ls wheelhouse/*.whl | wc -l) wheels, $$(du -sh wheelhouse | cut -f1): copy the project's folder, then make book WHEELHOUSE=wheelhouse"

# Runs the reference study (the archives must be in data/raw/ or a folder of $MSTL_DATA) and renews what is committed of it:
# predictions, measures, metrics, histories and run records; no image, no checkpoint.
reference: $(STAMP)
	@$(BIN)/mstl run reference --jobs $(JOBS)
	@$(BIN)/python -m mstl.reference

clean:
	rm -rf $(VENV) _build dist .pytest_cache .hypothesis
