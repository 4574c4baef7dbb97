# make demo · make test · make check · make bench · make mini · make eval-mini; each sets up .venv when there is none
PYTHON ?= python3
OPENSCORE ?=
DATA := out/mini
BIN := .venv/bin
READY := .venv/ready
TRAIN := OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node=2 code/train_clamp3

.PHONY: demo test check bench mini eval-mini setup clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all,dev]"
	touch $@

demo: $(READY)  ## converts, extracts and searches 300 held-out tunes
	$(BIN)/python mini/demo.py

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)
	$(BIN)/python -m bench

# With Essen, whose license is non-commercial, the model is not put into the package.
mini: $(READY)  ## trains mini from nothing: make mini OPENSCORE=folder [ESSEN=1]
	rm -rf $(DATA)
	$(BIN)/python mini/build.py $(DATA) $(if $(OPENSCORE),--openscore $(OPENSCORE)) $(if $(ESSEN),--essen)
	$(BIN)/python code/train_m3.py --config mini/config.py
	for stage in 1_short 2_long 3_scores; do $(TRAIN)_symbolic.py --config mini/config.py mini/stages/$$stage.py || exit 1; done
	$(BIN)/python mini/build_audio.py $(DATA)
	$(TRAIN)_audio.py --config mini/config.py mini/stages/4_audio.py
	$(BIN)/python code/export_clamp3.py $(if $(ESSEN),$(DATA)/variant,code/clamplib/mini) --config mini/config.py
	$(if $(ESSEN),,cp $(DATA)/held_out_tunes.txt mini/)

eval-mini: $(READY)  ## prints what mini is worth on held-out pieces: make eval-mini [OPENSCORE=folder]
	$(BIN)/python mini/build.py $(DATA) $(if $(OPENSCORE),--openscore $(OPENSCORE)) $(if $(ESSEN),--essen)
	$(BIN)/python mini/build_audio.py $(DATA) --held_out
	$(BIN)/python mini/evaluate.py $(DATA) --variant $(if $(ESSEN),$(DATA)/variant,mini)

clean:
	rm -rf .venv out
