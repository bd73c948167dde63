"""The bounded cache under a keyed hash."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.validators.token_cache import TokenCache


class TokenCacheTests(SynchronousTestCase):
    def put(self, cache: TokenCache[float], *tokens: str, value: float = 0) -> None:
        for token in tokens:
            cache.put(cache.key(token), value)

    def known(self, cache: TokenCache[float], tokens: str) -> str:
        """Those of `tokens` that have an entry."""
        return "".join(token for token in tokens if cache.get(cache.key(token)) is not None)

    def test_a_value_is_found_under_its_token_only(self) -> None:
        cache = TokenCache[float](3)
        self.put(cache, "a", value=1)
        self.assertEqual(cache.get(cache.key("a")), 1)
        self.assertIsNone(cache.get(cache.key("b")))

    def test_the_oldest_entry_is_evicted_first(self) -> None:
        cache = TokenCache[float](3)
        self.put(cache, "a", "b", "c", "d")
        self.assertEqual(len(cache), 3)
        self.assertEqual(self.known(cache, "abcd"), "bcd")

    def test_an_entry_that_is_put_again_becomes_the_newest(self) -> None:
        cache = TokenCache[float](3)
        self.put(cache, "a", "b", "c", "a", "d")
        self.assertEqual(self.known(cache, "abcd"), "acd")

    def test_reading_does_not_make_an_entry_newer(self) -> None:
        cache = TokenCache[float](2)
        self.put(cache, "a", "b")
        cache.get(cache.key("a"))
        self.put(cache, "c")
        self.assertEqual(self.known(cache, "abc"), "bc")

    def test_old_entries_that_are_not_current_are_evicted(self) -> None:
        clock = Clock()
        cache = TokenCache[float](9, lambda until: clock.seconds() < until)
        self.put(cache, "a", "b", value=10)
        self.put(cache, "c", value=30)
        self.put(cache, "d", value=10)
        clock.advance(10)
        self.put(cache, "e", value=30)
        # "d" is behind an entry that is current.
        self.assertEqual(self.known(cache, "abcde"), "cde")

    def test_an_entry_that_is_not_current_is_not_added(self) -> None:
        cache = TokenCache[float](9, lambda until: until > 0)
        self.put(cache, "a", value=0)
        self.assertEqual(len(cache), 0)

    def test_an_entry_can_be_discarded_more_than_once(self) -> None:
        cache = TokenCache[float](3)
        self.put(cache, "a", "b")
        for _ in range(2):
            cache.discard(cache.key("a"))
            self.assertEqual(self.known(cache, "ab"), "b")

    def test_no_token_is_kept_and_each_cache_has_its_own_hash(self) -> None:
        cache, other = TokenCache[float](3), TokenCache[float](3)
        self.put(cache, "canary-token")
        [key] = cache._entries
        self.assertNotIn(b"canary", key)
        self.assertEqual(len(key), 32)
        self.assertEqual(cache.key("canary-token"), key)
        self.assertNotEqual(other.key("canary-token"), key)

    def test_a_cache_of_no_entries_keeps_none(self) -> None:
        cache = TokenCache[float](0)
        self.put(cache, "a")
        self.assertEqual(len(cache), 0)
