# Each target sets up its own environment from nothing: `make demo` in a fresh clone is enough.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check results bench speed exactness resumes mutations torture fuzz clean

demo: .venv/ready
	$(BIN)/gradstep train digits

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Runs every built-in recipe and example against the result it states, and records what came out.
results: .venv/ready
	$(BIN)/python -m benchmarks.results

bench: .venv/ready .venv-peers/ready
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.images
	$(BIN)/python -m benchmarks.updates
	$(BIN)/python -m benchmarks.optimizers
	$(BIN)/python -m benchmarks.checkpoints
	$(BIN)/python -m benchmarks.adoption
	.venv-peers/bin/python -m benchmarks.speed --short
	.venv-peers/bin/python -m benchmarks.speed.report

# Speed beside loops by hand and other tools, in full, an hour and a half; `bench` has the short form.
speed: .venv-peers/ready
	.venv-peers/bin/python -m benchmarks.speed
	.venv-peers/bin/python -m benchmarks.speed.report

# The same eight cases in other tools, from their released packages, in an environment of their own beside .venv.
exactness: .venv-peers/ready
	.venv-peers/bin/python -m benchmarks.exactness

# Plants bugs in a copy of the source, one at a time, and sees that the tests catch each; ten minutes.
mutations: .venv/ready
	$(BIN)/python -m tests.mutations --record benchmarks/records/mutations.json

# Ten minutes of strange checkpoints for the reader; what reaches a new message is kept in tests/corpus.
fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz_reader --seconds 600 --corpus tests/corpus/reader --record benchmarks/records/fuzz.json

# A run stopped in mid-epoch or killed, and resumed, by four tools, each as its documentation says.
resumes: .venv-peers/ready
	.venv-peers/bin/python -m benchmarks.resume

# The real command killed a thousand times, half an hour; started again it goes on. --cold 1 imports torch each time anew.
torture: .venv/ready
	$(BIN)/python -m tests.torture --kills 1000 --processes 2 --cold 0.3 --record benchmarks/records/torture.json

clean:
	rm -rf .venv .venv-peers

.venv-peers/ready: pyproject.toml constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -c constraints.txt -r benchmarks/peers.txt -e .
	touch .venv-peers/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,tensorboard,augment,dev]"
	touch .venv/ready
