"""Reads key sets (JWKS, RFC 7517) and verifies signatures with their keys.

The signature algorithms are PyJWT's, with cryptography below them. A key object is made once, when
a key set is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from json import JSONDecoder
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import Algorithm, ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.api_jws import PyJWS
from jwt.exceptions import InvalidKeyError

from topicsvc.refusals import quoted
from topicsvc.settings import JWT_ALGORITHMS
from topicsvc.strict_json import reject_constant, reject_duplicates
from topicsvc.validators.jwt.token import decode_base64url

__all__ = ["MAX_JWKS", "MAX_KEYS", "Key", "KeySet", "algorithms_of", "read_keys", "verify"]

MAX_JWKS = 262144
"""Most bytes of a key set."""

MAX_KEYS = 100
"""Most keys of a key set."""

_RSA_BITS = range(2048, 8193)
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("EdDSA", "Ed25519"),
    "Ed448": ("EdDSA",),
}
_READERS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "RSA": (RSAAlgorithm, ("n", "e")),
    "EC": (ECAlgorithm, ("crv", "x", "y")),
    "OKP": (OKPAlgorithm, ("crv", "x")),
}
"""For each type of key: its reader, and its members, which are texts."""

_PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
_MAX_EXPONENT = 2**64
_decoder = JSONDecoder(object_pairs_hook=reject_duplicates, parse_constant=reject_constant)


def _algorithms() -> dict[str, Algorithm]:
    known = PyJWS()
    known.register_algorithm("Ed25519", OKPAlgorithm())
    return {name: known.get_algorithm_by_name(name) for name in JWT_ALGORITHMS}


_ALGORITHMS = _algorithms()


@dataclass(eq=False, slots=True)
class Key:
    """A public key.

    Attributes:
        key_id: its ``kid``; None: it has none.
        algorithms: the algorithms with which it may be used.
        material: identifies the key, whatever its name is.
        is_current: whether its issuer still publishes it, as far as is known.
    """

    key_id: str | None
    algorithms: frozenset[str]
    material: tuple[str, ...]
    public_key: Any = field(repr=False)
    is_current: bool = True


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of one issuer.

    Attributes:
        keys: the keys that can be used.
        skipped: for each other key, its name and why it cannot be used.
        withdrawn: the names of keys that earlier sets had, at most `MAX_KEYS`, the last ones last.
    """

    keys: tuple[Key, ...]
    skipped: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()

    def find(self, key_id: str | None, algorithm: str) -> tuple[Key, ...]:
        """Return the keys with which a token may have been signed.

        Args:
            key_id: ``kid`` of the token; None: it has none, and any key may fit.
            algorithm: ``alg`` of the token.
        """
        return tuple(
            key for key in self.keys if algorithm in key.algorithms and key_id in (None, key.key_id)
        )

    def has(self, key_id: str) -> bool:
        """Whether a key has this name, for any algorithm."""
        return any(key.key_id == key_id for key in self.keys)

    def replaced_by(self, newer: KeySet) -> KeySet:
        """Return `newer` with the `Key` objects of this set, where the keys are the same.

        Keys of this set that are not in `newer` are no longer current.
        """
        known = {_identity(key): key for key in self.keys}
        keys = tuple(known.get(_identity(key), key) for key in newer.keys)
        self.withdraw()
        for key in keys:
            key.is_current = True
        return KeySet(keys, newer.skipped, self._withdrawn_by(newer))

    def _withdrawn_by(self, newer: KeySet) -> tuple[str, ...]:
        names = [*self.withdrawn, *(key.key_id for key in self.keys if key.key_id is not None)]
        left = {name: None for name in names if not newer.has(name)}
        return tuple(left)[-MAX_KEYS:]

    def withdraw(self) -> None:
        """Use none of the keys any more."""
        for key in self.keys:
            key.is_current = False


def verify(key: Key, algorithm: str, signed: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `key` for `signed`; `key` must allow `algorithm`."""
    if algorithm not in key.algorithms:
        return False
    return _ALGORITHMS[algorithm].verify(signed, key.public_key, signature)


def read_keys(body: bytes) -> KeySet:
    """Read a key set. Keys that cannot be used are skipped, and the others are returned.

    Raises:
        ValueError: it is no key set, or has too many keys.
    """
    if len(body) > MAX_JWKS:
        raise ValueError(f"a key set of more than {MAX_JWKS} bytes")
    try:
        members = _decoder.decode(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("a key set that is not JSON, or in which a key occurs twice") from None
    entries = members.get("keys") if isinstance(members, dict) else None
    if not isinstance(entries, list):
        raise ValueError('a key set without a list "keys"')
    if len(entries) > MAX_KEYS:
        raise ValueError(f"a key set of more than {MAX_KEYS} keys")
    keys: dict[tuple[object, ...], Key] = {}
    skipped = []
    for place, entry in enumerate(entries):
        try:
            key = _read_key(entry)
        except ValueError as error:
            skipped.append(f"{_name(place, entry)}: {error}")
        else:
            keys.setdefault(_identity(key), key)
    return KeySet(tuple(keys.values()), tuple(skipped))


def _read_key(entry: Any) -> Key:
    """Read one key.

    Raises:
        ValueError: it cannot be used, with the reason.
    """
    kind = _check_purpose(entry)
    key_id = entry.get("kid")
    if not (key_id is None or isinstance(key_id, str)):
        raise ValueError("its name (kid) is no text")
    reader, names = _READERS[kind]
    values = tuple(_text(entry, name) for name in names)
    algorithms = _RSA if kind == "RSA" else _curve(kind, values[0])
    if "alg" in entry:
        if entry["alg"] not in algorithms:
            raise ValueError(f"its algorithm (alg) is {_shown(entry['alg'])}")
        algorithms = (entry["alg"],)
    try:
        for number in values if kind == "RSA" else values[1:]:
            decode_base64url(number)
        if kind == "RSA":
            _check_rsa(*values)
        public_key = reader.from_jwk(dict(zip(("kty", *names), (kind, *values), strict=True)))
    except (InvalidKeyError, UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise ValueError(f"it is not valid: {error}") from None
    return Key(key_id, frozenset(algorithms), (kind, *values), public_key)


def _check_purpose(entry: Any) -> str:
    """Check that a key is a public one for signatures; return its type.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    kind = entry.get("kty")
    if not isinstance(kind, str) or kind not in _READERS:
        raise ValueError(f"its type (kty) is {_shown(kind)}, which is not supported")
    use, operations = entry.get("use", "sig"), entry.get("key_ops", ["verify"])
    if use != "sig":
        raise ValueError(f"its use is {_shown(use)}, not signatures")
    if not isinstance(operations, list) or "verify" not in operations:
        raise ValueError("its key_ops do not have verify")
    private = [name for name in _PRIVATE if name in entry]
    if private:
        raise ValueError(f"it has private members ({', '.join(private)}), which were disclosed")
    return kind


def _curve(kind: str, name: str) -> tuple[str, ...]:
    algorithms = _CURVES.get(name, ())
    if not algorithms or name.startswith("Ed") != (kind == "OKP"):
        raise ValueError(f"its curve (crv) is {_shown(name)}, which is not supported")
    return algorithms


def _check_rsa(modulus: str, exponent: str) -> None:
    bits = int.from_bytes(decode_base64url(modulus)).bit_length()
    if bits not in _RSA_BITS:
        raise ValueError(f"{bits} bits; {_RSA_BITS.start} to {_RSA_BITS.stop - 1} are allowed")
    if not 3 <= int.from_bytes(decode_base64url(exponent)) < _MAX_EXPONENT:
        raise ValueError("its exponent is too small or too large")


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is missing or no text")
    return value


def _identity(key: Key) -> tuple[object, ...]:
    return key.key_id, key.algorithms, key.material


def _name(place: int, entry: Any) -> str:
    key_id = entry.get("kid") if isinstance(entry, dict) else None
    return f"key {quoted(key_id)}" if isinstance(key_id, str) else f"key {place + 1}"


def _shown(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else "missing" if value is None else "no text"


def algorithms_of(keys: Iterable[Key]) -> str:
    """Return the algorithms of keys in words, in the order of `JWT_ALGORITHMS`."""
    known = frozenset[str]().union(*(key.algorithms for key in keys))
    return ", ".join(name for name in JWT_ALGORITHMS if name in known) or "none"
