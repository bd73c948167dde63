"""The ``topicsvc`` command, with tools for operators and clients."""
