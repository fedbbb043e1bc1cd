# Everything that a user runs. `make demo` and `make test` set themselves up.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

# One backend, never two: their wheels overwrite each other.
ifneq ($(shell command -v nvidia-smi),)
BACKEND := tensorflow[and-cuda]==2.21.0
else ifeq ($(shell uname -sm),Linux x86_64)
BACKEND := tensorflow-cpu==2.21.0
else
BACKEND := tensorflow==2.21.0
endif

# uv where there is one, pip otherwise; both show what they are doing.
ifneq ($(shell command -v uv),)
INSTALL := uv pip install --python $(BIN)/python
else
INSTALL := $(BIN)/python .ci/install.py
endif

# One worker for each core; each takes whole files, in the order of tests/conftest.py.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

# The suites that run on each backend. The others test TensorFlow alone (exports), or files
# and pages that no backend touches.
BACKEND_SUITES := $(addprefix tests/test_, $(addsuffix .py, backends losses losses_oracle layers \
	models models_autoencoder models_embedder models_pretrained models_siamese models_signals \
	models_unet models_vae data_arrays data_batches data_candidates data_folders data_noise denoising explaining \
	data_augmentation data_pairs data_sets efficientnet_lite0 fitting neighbors training resume diffusion plots))

# The part of them that `make test` runs on JAX: each loss, layer and builder, `embed`, `fit`, the
# continuation of runs, sampling and denoising. Left out, to save time, are the tests of what NumPy
# computes (data, neighbors, most plots, the order of batches, learning rates), the float64 references
# of losses, the variants of builders and their dtype policies, the state of callbacks, and the runs
# that are killed, each of whose processes would compile its network again.
JAX_SUITES := $(addprefix tests/test_, $(addsuffix .py, backends losses layers models models_siamese \
	data_batches training diffusion)) \
	tests/test_models_vae.py::test_a_vae_learns \
	tests/test_data_augmentation.py::test_a_batch_depends_on_seed_epoch_and_index_alone \
	tests/test_resume.py::test_a_run_under_any_dtype_policy_in_two_calls_ends_as_one_call \
	tests/test_models_unet.py::test_a_unet_with_averaged_weights_learns_and_generates_images \
	tests/test_plots.py::test_a_network_shows_each_change_of_shape \
	--deselect tests/test_training.py::test_a_run_killed_at_random_moments_ends_bit_equal_to_one_never_killed \
	--deselect tests/test_training.py::test_batches_that_begin_their_own_epochs_are_drawn_in_that_order_and_go_on_with_it \
	--deselect tests/test_training.py::test_the_learning_rate_rises_to_its_peak_and_falls_to_zero \
	--deselect tests/test_models.py::test_under_mixed_precision_the_output_is_not_rounded_to_that_precision \
	--deselect tests/test_diffusion.py::test_a_sample_of_each_image_starts_at_the_step_of_its_own_noise \
	--deselect tests/test_diffusion.py::test_the_mean_is_what_the_network_takes_away_at_the_step_of_the_noise

# PyTorch has an environment of its own, with the wheel for the CPU; other wheels bring CUDA, 3 GB.
TORCH_VENV := .venv-torch
TORCH := torch==2.13.0$(if $(filter Linux,$(shell uname -s)),+cpu)

.PHONY: demo notebooks-demo check test test-jax test-torch test-learn torture coverage cluster browser lint docs notebooks figures bench lock clean

# Trains, maps, searches, verifies and exports on the bundled digits, and prints each figure beside
# its baseline. It fails if a trained network is not better than its baseline.
demo: $(VENV)/.ok
	$(BIN)/python -m kerasim._quiet examples/demo.py runs/demo

# Runs every notebook on the bundled digits.
notebooks-demo: $(VENV)/.ok
	$(BIN)/python -m notebooks runs/notebooks-demo --dataset digits

# Style, types and fast unit tests, in about two minutes.
check: lint
	$(BIN)/python -m pytest tests $(PARALLEL) --fast -q

# Everything that CI runs: style, types, unit tests, fault tests, the demo, the README and the guides.
# The explorer page is tested if there is Chromium, which `make browser` installs.
test: lint
	$(BIN)/python -m pytest tests $(PARALLEL)
	$(MAKE) cluster
	$(MAKE) test-jax

# The suites that show a fault of JAX. Nearly all their time is that of compiling small functions,
# and with fewer optimizations of XLA it is 40 % shorter.
test-jax: $(VENV)/.ok
	KERAS_BACKEND=jax JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest $(JAX_SUITES) $(PARALLEL)

# All suites that also run on another backend, on PyTorch; CI runs it in a job of its own.
test-torch: $(TORCH_VENV)/.ok
	KERAS_BACKEND=torch $(TORCH_VENV)/bin/python -m pytest $(BACKEND_SUITES) $(PARALLEL)

# Trains every builder on the digits with three seeds, and runs every notebook on them.
test-learn: $(VENV)/.ok
	KERASIM_TEST_LEARN=1 $(BIN)/python -m pytest tests/test_learning.py tests/test_notebooks.py $(PARALLEL)

# Stress tests: prints each goal beside what was reached. GOALS="mutants kills" runs some of them,
# which tests/torture/goals.py names.
torture: $(VENV)/.ok
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture $(GOALS)

# The branches that no test takes; see [tool.coverage] in pyproject.toml.
coverage: $(VENV)/.ok browser
	$(BIN)/python -m pytest tests $(PARALLEL) --cov --cov-report=
	KERASIM_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/test_distribute.py --cov --cov-append

# A Ray cluster of two nodes, of which one is killed; apart from the other tests, beside which its
# processes would take minutes to start.
cluster: $(VENV)/.ok
	KERASIM_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/test_distribute.py

# Chromium, in which the explorer page is tested; where it can't be had, those tests are skipped.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	echo "Installing Chromium, in which the explorer page is tested ..." && \
	apt-get update -qq && apt-get install -yqq --no-install-recommends chromium >/dev/null; } || \
	echo "No Chromium: the tests of the explorer page will be skipped."

lint: $(VENV)/.ok
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The documentation site, in site/. A broken link or a missing page is an error.
docs: $(VENV)/.ok
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html."

# Runs every notebook in full on the data in KERASIM_DATA_DIR, and keeps their outputs.
notebooks: $(VENV)/.ok
	$(BIN)/python -m notebooks runs/notebooks --keep

# Fails if README, docs/results.md or the time that a notebook states differs from what the outputs of
# the notebooks record. `make figures WRITE=1` writes what they record.
figures: $(VENV)/.ok
	$(BIN)/python -m notebooks.results $(if $(WRITE),--write)

# Writes what the benchmarks print into runs/benchmarks.md; see benchmarks/README.md.
bench: $(VENV)/.peers
	$(BIN)/python benchmarks/run.py

# What kerasim is compared with.
$(VENV)/.peers: $(VENV)/.ok benchmarks/requirements.txt
	$(INSTALL) -c requirements.lock -r benchmarks/requirements.txt
	touch $@

$(VENV)/.ok: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kerasim needs Python 3.11 or newer")'
	@test -x $(BIN)/python || { echo "Creating $(VENV) ..." && $(PYTHON) -m venv $(VENV); }
	@echo "Installing some 170 packages into $(VENV), about 4 GB; it takes some minutes."
	@$(INSTALL) --no-deps -r requirements.lock
	@$(INSTALL) -c requirements.lock "$(BACKEND)"
	@$(INSTALL) --no-deps -e .
	@touch $@

# First what else kerasim needs, so that only PyTorch is looked for on the index of its CPU wheels.
$(TORCH_VENV)/.ok: requirements.lock pyproject.toml
	@test -x $(TORCH_VENV)/bin/python || $(PYTHON) -m venv $(TORCH_VENV)
	@$(TORCH_VENV)/bin/python .ci/install.py -c requirements.lock -e . pytest pytest-xdist
	@$(TORCH_VENV)/bin/python .ci/install.py -c requirements.lock "$(TORCH)" \
	--extra-index-url https://download.pytorch.org/whl/cpu
	@touch $@

# Resolves the pins again (needs uv): with the backend, so that it fits, then without it. The pins are
# installed with --no-deps, so that keras-hub does not bring tensorflow-text and a second TensorFlow.
lock:
	compile="uv pip compile -q --universal --python-version 3.11 --no-annotate --no-header"; \
	pins=$$(mktemp) && echo "tensorflow-cpu==2.21.0" | $$compile pyproject.toml --extra dev --extra docs --extra onnx --extra ray --extra hub --extra heic --extra jax - > $$pins && \
	sed -i.all '/^tensorflow/d' $$pins && \
	{ echo "# Full pins for make and CI, Python 3.11 and up, without the backend, which the"; \
	echo "# Makefile adds. keras-hub comes without tensorflow-text, see docs/backends.md. Made by"; \
	echo "# make lock."; \
	echo "keras-hub==0.32.0"; \
	$$compile pyproject.toml --extra dev --extra docs --extra onnx --extra ray --extra hub --extra heic --extra jax -c $$pins; } > requirements.lock

clean:
	rm -rf $(VENV) $(TORCH_VENV) runs site .coverage*
