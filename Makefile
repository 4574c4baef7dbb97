# make demo · make test · make check · make fuzz · make faults · make bench · make mini · make eval-mini · make leave-out
# Each sets up .venv if there is none.
PYTHON ?= python3
OPENSCORE ?=
OPENEWLD ?=
DATA := out/mini
RECIPE := recipes/mini
COLLECTION := ryansMammoth
WITHOUT = $(DATA)/without/$(COLLECTION)
SEED := 1
PROCESSES := $(or $(filter-out 0,$(shell nvidia-smi -L 2>/dev/null | grep -c ^GPU)),2)
SOURCES = $(if $(OPENSCORE),--openscore $(OPENSCORE)) $(if $(OPENEWLD),--openewld $(OPENEWLD)) $(if $(ESSEN),--essen)
BIN := .venv/bin
READY := .venv/ready
TRAIN := OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node=$(PROCESSES) code/train

.PHONY: demo test check fuzz faults bench mini eval-mini leave-out setup clean

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

# A stage that is finished leaves a file, and one that was stopped goes on: make mini again. `rm -r out/mini` begins anew.
# One process per GPU shares the training, or two without a GPU. Batches are equally large for any number.
# The license of Essen is non-commercial, so a model trained with Essen stays out of the package.
mini: $(DATA)/2_audio.done  ## trains mini from scratch: make mini OPENSCORE=folder OPENEWLD=folder [ESSEN=1]
	$(BIN)/python code/export_clamp3.py $(if $(ESSEN),$(DATA)/variant,code/clamplib/mini) --config $(RECIPE)/config.py
	$(if $(ESSEN),,cp $(DATA)/held_out_tunes.csv code/clamplib/app/)

$(DATA)/notes.done: $(READY)
	$(BIN)/python -m recipes.mini.build $(DATA) $(SOURCES)
	touch $@

$(DATA)/m3.done: $(DATA)/notes.done
	$(TRAIN)_m3.py --config $(RECIPE)/config.py
	touch $@

$(DATA)/1_symbolic.done: $(DATA)/m3.done
	$(TRAIN)_clamp3_symbolic.py --config $(RECIPE)/config.py $(RECIPE)/stages/1_symbolic.py
	touch $@

$(DATA)/recordings.done: $(DATA)/notes.done
	$(BIN)/python -m recipes.mini.build_audio $(DATA)
	touch $@

$(DATA)/2_audio.done: $(DATA)/1_symbolic.done $(DATA)/recordings.done
	$(TRAIN)_clamp3_audio.py --config $(RECIPE)/config.py $(RECIPE)/stages/2_audio.py
	touch $@

eval-mini: $(READY)  ## evaluates mini on held-out pieces, and on music from elsewhere: make eval-mini [OPENSCORE=folder]
	$(BIN)/python -m recipes.mini.build $(DATA) $(SOURCES)
	$(BIN)/python -m recipes.mini.build_audio $(DATA) --held_out
	$(BIN)/python -m recipes.mini.evaluate $(DATA) --variant $(if $(ESSEN),$(DATA)/variant,mini)
	$(BIN)/python -m recipes.mini.elsewhere $(DATA) --variant $(if $(ESSEN),$(DATA)/variant,mini)

leave-out: $(DATA)/m3.done  ## trains without a collection and judges by it: make leave-out COLLECTION=ryansMammoth
	$(BIN)/python -m recipes.mini.leave_out $(DATA) $(COLLECTION)
	$(TRAIN)_clamp3_symbolic.py --config $(RECIPE)/config.py $(RECIPE)/stages/1_symbolic.py $(WITHOUT)/settings.py
	$(BIN)/python code/export_clamp3.py $(WITHOUT)/variant --config $(RECIPE)/config.py $(WITHOUT)/settings.py
	$(BIN)/python -m recipes.mini.elsewhere $(DATA) --collection $(COLLECTION) --variant $(WITHOUT)/variant

clean:
	rm -rf .venv out
