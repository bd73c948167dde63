"""An issuer of JWTs: its keys, its tokens, and a server of its key set with named faults."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.api_jws import PyJWS
from twisted.web.resource import Resource
from twisted.web.server import Site

from tests.support.fake_unit import Fault, Reply, answers_at_once

ISSUER = "https://as.example/realms/main"
AUDIENCE = "https://push.example/"

_CURVES: dict[str, ec.EllipticCurve] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
    "ES256K": ec.SECP256K1(),
}
_WRITERS: dict[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}


def b64(data: bytes) -> str:
    """Encode as base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def private_key(kind: str, name: str = "") -> Any:
    """Return a private key; the same one for the same arguments, as new ones take long.

    Args:
        kind: ``RSA2048``, an algorithm with a curve, ``Ed25519`` or ``Ed448``.
        name: tells several keys of one kind apart.
    """
    return _private_key(kind, name)


@cache
def _private_key(kind: str, _: str) -> Any:
    if kind.startswith("RSA"):
        return rsa.generate_private_key(65537, int(kind[3:]))
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "Ed448":
        return ed448.Ed448PrivateKey.generate()
    return ec.generate_private_key(_CURVES[kind])


def jwk(key: Any, key_id: str | None = "a", **members: Any) -> dict[str, Any]:
    """Return the public key of `key` as a JWK. A member that is None is left out."""
    kind = "RSA" if isinstance(key, rsa.RSAPrivateKey) else "OKP"
    if isinstance(key, ec.EllipticCurvePrivateKey):
        kind = "EC"
    written: dict[str, Any] = _WRITERS[kind].to_jwk(key.public_key(), as_dict=True)
    written.pop("key_ops", None)
    written |= {"kid": key_id, "use": "sig", **members}
    return {name: value for name, value in written.items() if value is not None}


def jwks(*keys: Any) -> bytes:
    """Return a key set."""
    return json.dumps({"keys": keys}).encode("utf-8")


def encode(header: bytes, claims: bytes, key: Any, algorithm: str) -> str:
    """Return a signed token with any bytes as its header and claims.

    Args:
        header: the header.
        claims: the claims.
        key: a private key; bytes for HMAC.
        algorithm: the algorithm of the signature, whatever the header says.
    """
    signed = f"{b64(header)}.{b64(claims)}"
    known = PyJWS()
    known.register_algorithm("Ed25519", OKPAlgorithm())
    signature = known.get_algorithm_by_name(algorithm).sign(signed.encode("ascii"), key)
    return f"{signed}.{b64(signature)}"


class FakeIssuer(Resource):
    """An issuer, and its server: discovery at both places, and a key set.

    Args:
        now: the time of day, in seconds since the epoch, for the claims of tokens.
        issuer: its name.

    Attributes:
        published: the keys of its key set.
        requests: the path of each request.
        issuer: its name, also in its description.
        members: further members of its description.
    """

    isLeaf = True

    def __init__(self, now: float, issuer: str = ISSUER) -> None:
        super().__init__()
        self.now = now
        self.issuer = issuer
        self.members: dict[str, Any] = {}
        self.published: list[Any] = [jwk(private_key("RSA2048"))]
        self.requests: list[str] = []
        self._faults: dict[str, Fault] = {}

    def token(
        self,
        key: Any = None,
        algorithm: str = "RS256",
        header: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """Return a token. A parameter or claim that is None is left out."""
        members = {"typ": "at+jwt", "alg": algorithm, "kid": "a", **(header or {})}
        facts = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "exp": int(self.now) + 3600,
            "sub": "alice",
            "scope": "news",
            **claims,
        }
        return encode(
            _without_none(members),
            _without_none(facts),
            private_key("RSA2048") if key is None else key,
            algorithm,
        )

    def site(self) -> Site:
        site = Site(self)
        site.log = lambda request: None
        return site

    def inject(self, fault: Fault, path: str = "") -> None:
        """Apply `fault` to requests whose path ends with `path`, until `recover`."""
        self._faults[path] = fault

    def recover(self) -> None:
        """Remove all faults."""
        self._faults.clear()

    @property
    def fetches(self) -> int:
        """How often the key set was requested."""
        return sum(path.endswith("/jwks") for path in self.requests)

    def render(self, request: Any) -> Any:
        path = request.path.decode("ascii")
        self.requests.append(path)
        reply = self._answer(path)
        for suffix, fault in self._faults.items():
            if path.endswith(suffix):
                return fault(request, reply)
        return answers_at_once(request, reply)

    def _answer(self, path: str) -> Reply:
        root = self.issuer.split("/realms")[0]
        kind = {"Content-Type": "application/json"}
        if path.endswith("/.well-known/openid-configuration"):
            description = {"issuer": self.issuer, "jwks_uri": f"{root}/jwks", **self.members}
            return Reply(200, json.dumps(description).encode(), kind)
        if path == "/jwks":
            return Reply(200, jwks(*self.published), kind)
        return Reply(404)


def _without_none(members: Mapping[str, Any]) -> bytes:
    given = {name: value for name, value in members.items() if value is not None}
    return json.dumps(given).encode("utf-8")
