"""The rules of a topic's client: no I/O, no clock, only the standard library.

Two distributions contain this package: ``topicsvc`` for Twisted, as ``topicsvc.client.rules``, and
``topicsvc-client`` for asyncio, as ``topicsvc_client.rules``. The second is a link to this
directory. The modules therefore import one another by relative imports, and nothing else.
"""
