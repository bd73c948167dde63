"""The tests: ``python -m twisted.trial tests``."""

from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("topicsvc", deadline=None)
settings.load_profile("topicsvc")
