"""A real Keycloak in memory, with one realm that its admin REST API sets up."""

from __future__ import annotations

import json
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import inlineCallbacks
from twisted.internet.threads import deferToThread

from tests.integration.support.requirements import need
from tests.support.processes import Program, free_port, listens, until

DIST = Path(__file__).parent.parent / "keycloak" / "dist"

REALM = "main"
AUDIENCE = "topicsvc"
"""The client that stands for the service: the audience of tokens; it introspects them."""

AUDIENCE_SECRET = "a secret of the service"
CLIENT, SECRET = "app", "a secret of the app"
USER, PASSWORD = "alice", "a password of alice"
LIFESPAN = 600
"""Seconds from the issue of an access token to its expiry."""

START_TIMEOUT = 600
"""Seconds: the first start after the installation also builds the server."""

_ADMIN = "admin"
_MAPPER = {
    "name": "audience",
    "protocol": "openid-connect",
    "protocolMapper": "oidc-audience-mapper",
    "config": {
        "included.client.audience": AUDIENCE,
        "access.token.claim": "true",
        "introspection.token.claim": "true",
    },
}


def need_keycloak() -> None:
    """Skip or fail the test if Keycloak or Java is missing."""
    need(any(DIST.glob("keycloak-*")), "Keycloak (tests/integration/install.sh)")
    need(shutil.which("java"), "java (tests/integration/install.sh)")


class Keycloak:
    """One server on a free port, without files of its own.

    Attributes:
        url: its URL.
    """

    def __init__(self) -> None:
        need_keycloak()
        [home] = DIST.glob("keycloak-*")
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = Path(tempfile.mkdtemp(prefix="topicsvc-keycloak-")) / "log"
        # kc.sh starts Java as its child, and would leave it behind when it is killed.
        self._java = [
            *("java", "-Xms64m", "-Xmx512m", "-XX:MaxMetaspaceSize=256m", "-XX:+UseSerialGC"),
            "-XX:TieredStopAtLevel=1",
            f"-Dkc.home.dir={home}",
            f"-Djboss.server.config.dir={home / 'conf'}",
            "-Djava.util.logging.manager=org.jboss.logmanager.LogManager",
            "-Dquarkus-log-max-startup-records=10000",
        ]
        self._arguments = [
            *("-cp", str(home / "lib/quarkus-run.jar")),
            "io.quarkus.bootstrap.runner.QuarkusEntryPoint",
            *("start-dev", "--db=dev-mem", "--cache=local", "--http-host=127.0.0.1"),
            f"--http-port={self._port}",
            *("--bootstrap-admin-username", _ADMIN, "--bootstrap-admin-password", _ADMIN),
        ]
        self.program = self._program()

    def _program(self, *options: str) -> Program:
        return Program([*self._java, *options, *self._arguments], self._log)

    @inlineCallbacks
    def start(self) -> Any:
        """Start the server and set up the realm; fires when both are done."""
        self.program.start()
        yield until(self._listens, "Keycloak listens", START_TIMEOUT)
        yield deferToThread(self._set_up)

    def _listens(self) -> bool:
        if not self.program.runs:
            # It ends after it has built itself, and is then started again.
            assert "-Dkc.config.built=true" not in self.program.command, self.program.log
            self.program = self._program("-Dkc.config.built=true")
            self.program.start()
        return listens(self._port)

    def stop(self) -> None:
        """Kill the server and remove its log."""
        self.program.kill()
        shutil.rmtree(self._log.parent, ignore_errors=True)

    @property
    def issuer(self) -> str:
        return f"{self.url}/realms/{REALM}"

    # Requests; these block, and are called in a thread.

    def _set_up(self) -> None:
        realm = {"realm": REALM, "enabled": True, "accessTokenLifespan": LIFESPAN}
        self.admin("POST", "", realm, "")
        self.admin(
            "POST",
            "/client-scopes",
            {
                "name": "news",
                "protocol": "openid-connect",
                "attributes": {"include.in.token.scope": "true"},
                "protocolMappers": [_MAPPER],
            },
        )
        self.admin("POST", "/roles", {"name": "editor"})
        self.admin(
            "POST",
            "/clients",
            {"clientId": AUDIENCE, "secret": AUDIENCE_SECRET, "standardFlowEnabled": False},
        )
        self.admin(
            "POST",
            "/clients",
            {
                "clientId": CLIENT,
                "secret": SECRET,
                "directAccessGrantsEnabled": True,
                "standardFlowEnabled": False,
                "defaultClientScopes": ["basic", "profile", "roles"],
                "optionalClientScopes": ["news"],
            },
        )
        self.admin(
            "POST",
            "/users",
            {
                "username": USER,
                "enabled": True,
                "email": "alice@push.example",
                "emailVerified": True,
                "firstName": "Alice",
                "lastName": "A",
                "credentials": [{"type": "password", "value": PASSWORD, "temporary": False}],
            },
        )
        [user] = self.admin("GET", f"/users?username={USER}")
        role = self.admin("GET", "/roles/editor")
        self.admin("POST", f"/users/{user['id']}/role-mappings/realm", [role])

    def admin(self, method: str, path: str, body: Any = None, realm: str = f"/{REALM}") -> Any:
        """Send a request to the admin REST API; return the JSON of the response."""
        token = self._post(
            f"{self.url}/realms/master/protocol/openid-connect/token",
            {
                "grant_type": "password",
                "client_id": "admin-cli",
                "username": _ADMIN,
                "password": _ADMIN,
            },
        )
        return self._send(
            urllib.request.Request(
                f"{self.url}/admin/realms{realm}{path}",
                None if body is None else json.dumps(body).encode(),
                {
                    "Authorization": f"Bearer {token['access_token']}",
                    "Content-Type": "application/json",
                },
                method=method,
            )
        )

    def set_client(self, **attributes: str) -> None:
        """Set attributes of the client of the app."""
        [client] = self.admin("GET", f"/clients?clientId={CLIENT}")
        client["attributes"] |= attributes
        self.admin("PUT", f"/clients/{client['id']}", client)

    def add_key(self, name: str, provider: str, **settings: str) -> None:
        """Add a key with which new tokens are signed."""
        realm = self.admin("GET", "")
        config = {"priority": "200", "enabled": "true", "active": "true", **settings}
        self.admin(
            "POST",
            "/components",
            {
                "name": name,
                "parentId": realm["id"],
                "providerId": provider,
                "providerType": "org.keycloak.keys.KeyProvider",
                "config": {key: [value] for key, value in config.items()},
            },
        )

    def remove_key(self, name: str) -> None:
        """Remove a key; it is then no longer in the key set."""
        found = self.admin("GET", "/components?type=org.keycloak.keys.KeyProvider")
        [key] = [each for each in found if each["name"] == name]
        self.admin("DELETE", f"/components/{key['id']}")

    def token(self, scope: str = "openid news") -> str:
        """Return an access token of the user."""
        return str(
            self._request("token", grant_type="password", username=USER, password=PASSWORD,
                          scope=scope)["access_token"]
        )  # fmt: skip

    def revoke(self, token: str) -> None:
        """Revoke an access token."""
        self._request("revoke", token=token, token_type_hint="access_token")

    def _request(self, endpoint: str, **form: str) -> Any:
        return self._post(
            f"{self.issuer}/protocol/openid-connect/{endpoint}",
            {"client_id": CLIENT, "client_secret": SECRET, **form},
        )

    def _post(self, url: str, form: Mapping[str, str]) -> Any:
        body = urllib.parse.urlencode(form).encode()
        return self._send(urllib.request.Request(url, body))

    def _send(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                body = response.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{request.full_url}: {error.code} {error.read()!r}") from None
        return json.loads(body) if body else None
