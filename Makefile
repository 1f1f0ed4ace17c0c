# Two commands are all a new machine needs: `make train` and `make test`.
# They bring uv into this folder (.uv/), sync the locked environment (.venv/) and run; nothing is installed elsewhere.

PYTHON ?= python3
UV     := .uv/bin/uv
RUN    := $(UV) run --no-sync
PEERS  := benchmarks/peers/.venv/bin/python

.PHONY: train test browser check lint types docs prove studies parity peers env env-test clean

train: env
	$(RUN) dinghai train

# Two processes of one thread each: the tests' models are too small to share one among cores.
test: env-test browser
	OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses 2 --dist loadfile

# The pages are tested in Chromium. Where there is none these tests are skipped, but in CI it is installed.
browser:
	@if [ -n "$$CI" ] && ! command -v chromium >/dev/null && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; \
	fi

check: env-test lint types test

lint:
	$(RUN) ruff check src tests benchmarks examples parity studies
	$(RUN) ruff format --check src tests benchmarks examples parity studies

types:
	$(RUN) mypy

# The pages of the rules and the checks and the explainer, from the registries; tests hold them together.
docs: env
	$(RUN) dinghai rules --markdown > docs/rules.md
	$(RUN) dinghai doctor --markdown > docs/doctor.md
	$(RUN) dinghai explain --page docs/explain.html

# The long proofs; their results stand in BENCHMARKS.md.
prove: env-test
	$(RUN) python benchmarks/rules.py
	$(RUN) python benchmarks/first_run.py
	$(RUN) python benchmarks/first_run.py examples/ppo.toml --seeds 3
	$(RUN) python benchmarks/recording.py
	$(RUN) python benchmarks/same_numbers.py
	$(RUN) python benchmarks/replay.py
	$(RUN) python benchmarks/epsilon.py
	$(RUN) python benchmarks/doctor.py
	$(RUN) python benchmarks/sweep.py
	-$(RUN) python benchmarks/update.py
	$(RUN) python benchmarks/browse.py
	$(RUN) python benchmarks/browse_page.py
	for seed in 0 1 2 3 4; do OMP_NUM_THREADS=1 $(RUN) python examples/cartpole_ppo.py --seed $$seed || exit 1; done

# What is said about the clip, held against runs: studies/results/. The claims come last, since they quote the others.
studies: env-test
	for study in what_the_clip_is_for entropy_and_bounds clip_higher one_update tokens_and_gradient gspo_fraction \
		dual_clip critic claims; do $(RUN) python studies/$$study.py || exit 1; done

# The objective against the released code of others, in an environment of its own (parity/README.md).
parity: parity/.venv/.synced
	cd parity && OMP_NUM_THREADS=1 .venv/bin/python -m pytest

# The speed against the released code of others, in an environment of its own; nothing else should run meanwhile.
peers: benchmarks/peers/.venv/.synced
	@missed=0; for what in head.py rollout.py whole_step.py "whole_step.py --curves"; do \
		$(PEERS) benchmarks/$$what || missed=1; \
	done; exit $$missed

$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

env: $(UV) .venv/.synced-train
env-test: $(UV) .venv/.synced-test

.venv/.synced-train: uv.lock pyproject.toml | $(UV)
	$(UV) sync --locked --inexact --no-dev --extra tasks --extra lora
	@touch $@

.venv/.synced-test: uv.lock pyproject.toml | $(UV)
	$(UV) sync --locked --inexact --all-extras
	@touch $@ .venv/.synced-train

parity/.venv/.synced: parity/uv.lock parity/pyproject.toml | $(UV)
	$(UV) sync --project parity --locked
	@touch $@

benchmarks/peers/.venv/.synced: benchmarks/peers/uv.lock benchmarks/peers/pyproject.toml pyproject.toml | $(UV)
	$(UV) sync --project benchmarks/peers --locked
	@touch $@

clean:
	rm -rf .venv .uv parity/.venv benchmarks/peers/.venv
