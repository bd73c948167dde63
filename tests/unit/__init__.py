"""Unit tests: one module for each module of topicsvc, in the same packages."""
