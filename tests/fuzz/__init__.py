"""Any bytes, where strangers can put them: no exception but ours, no failure in the log.

`tests.fuzz.targets` has the places. Hypothesis (tests/unit/test_hostile_input.py) feeds them in
every test run; by hand, for as long as wanted, a fuzzer that follows the code's branches
does::

    pip install '.[fuzz]'
    python -m tests.fuzz                    # each target for a minute
    python -m tests.fuzz request -s 600     # one, for ten minutes
"""
