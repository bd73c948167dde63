"""Fuzzing: any bytes from the network raise only topicsvc's own exceptions, and log no failure.

`tests.fuzz.targets` has the functions that take such bytes. In every test run, Hypothesis generates
their input (tests/unit/test_hostile_input.py). A coverage-guided fuzzer is started by hand, and
runs for any length of time. Without atheris, inputs are mutated at random
(`tests.fuzz.mutation`)::

    pip install '.[fuzz]'
    python -m tests.fuzz                    # each target for a minute
    python -m tests.fuzz request -s 600     # one, for ten minutes
"""
