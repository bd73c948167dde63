"""The benchmark: topicsvc and its peers, measured in one run by ``python -m bench``."""
