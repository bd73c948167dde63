"""The tests; README.md in this directory describes the commands."""

from hypothesis import settings

# The time of an example depends on the machine more than on the code.
settings.register_profile("topicsvc", deadline=None)
settings.load_profile("topicsvc")
