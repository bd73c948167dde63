"""Composition: the ``topicsvc`` command, for people at a terminal."""
