# make demo · make test · make check · make fuzz · make faults · make bench · make mini · make eval-mini
# Each sets up .venv if there is none.
PYTHON ?= python3
OPENSCORE ?=
DATA := out/mini
RECIPE := recipes/mini
SEED := 1
BIN := .venv/bin
READY := .venv/ready
TRAIN := OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node=2 code/train_clamp3

.PHONY: demo test check fuzz faults bench mini eval-mini setup clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all,dev]"
	touch $@

demo: $(READY)  ## searches 300 tunes that mini was not trained on
	$(BIN)/clamp3 demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fuzz: $(READY)  ## reads 20,000 mutated files: make fuzz [SEED=2]
	$(BIN)/python tests/reliability/fuzz.py --seed $(SEED) --report out/fuzz/report.json

faults: $(READY)  ## kills commands fifty times, fills their disks and runs two at once: make faults [SEED=2]
	$(BIN)/python tests/reliability/faults.py --kills 50 --seed $(SEED)

bench: $(READY)
	$(BIN)/python -m bench

# The license of Essen is non-commercial, so a model trained with Essen stays out of the package.
mini: $(READY)  ## trains mini from scratch: make mini OPENSCORE=folder [ESSEN=1]
	rm -rf $(DATA)
	$(BIN)/python -m recipes.mini.build $(DATA) $(if $(OPENSCORE),--openscore $(OPENSCORE)) $(if $(ESSEN),--essen)
	$(BIN)/python code/train_m3.py --config $(RECIPE)/config.py
	for stage in 1_short 2_long 3_scores; do $(TRAIN)_symbolic.py --config $(RECIPE)/config.py $(RECIPE)/stages/$$stage.py || exit 1; done
	$(BIN)/python -m recipes.mini.build_audio $(DATA)
	$(TRAIN)_audio.py --config $(RECIPE)/config.py $(RECIPE)/stages/4_audio.py
	$(BIN)/python code/export_clamp3.py $(if $(ESSEN),$(DATA)/variant,code/clamplib/mini) --config $(RECIPE)/config.py
	$(if $(ESSEN),,cp $(DATA)/held_out_tunes.csv code/clamplib/app/)

eval-mini: $(READY)  ## evaluates mini on held-out pieces: make eval-mini [OPENSCORE=folder]
	$(BIN)/python -m recipes.mini.build $(DATA) $(if $(OPENSCORE),--openscore $(OPENSCORE)) $(if $(ESSEN),--essen)
	$(BIN)/python -m recipes.mini.build_audio $(DATA) --held_out
	$(BIN)/python -m recipes.mini.evaluate $(DATA) --variant $(if $(ESSEN),$(DATA)/variant,mini)

clean:
	rm -rf .venv out
