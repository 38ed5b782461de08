"""An OIDC issuer as the API sees it: keys, a JWKS on loopback that can be away, slow or wrong, tokens of any content."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://id.example.com"
AUDIENCE = "kumihimo"

_MAKERS: dict[str, Any] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@dataclass
class Issuer:
    """keys: key id → (algorithm, private key). document: what is published in place of the JWKS of the keys."""

    keys: dict[str, tuple[str, Any]] = field(default_factory=dict)
    document: bytes | None = None
    away: bool = False
    asked: int = 0
    slow: threading.Event | None = None  # answers when it is set
    moved_to: str = ""
    url: str = ""

    def rotate(self, key_id: str, algorithm: str = "ES256") -> None:
        """This key alone from now on."""
        self.keys = {key_id: (algorithm, _MAKERS[algorithm]())}

    def jwk(self, key_id: str) -> dict[str, Any]:
        algorithm, key = self.keys[key_id]
        return {"kid": key_id, **jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)}

    def jwks(self) -> bytes:
        if self.document is not None:
            return self.document
        return json.dumps({"keys": [self.jwk(key_id) for key_id in self.keys]}).encode()

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims that are right, with changes; None leaves one out."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "carol",
            "exp": now + 600,
            "iat": now,
            "project_id": "demo",
            "roles": ["member"],
        }
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def token(self, key_id: str = "", headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """Signed with a key, by default the first; see claims()."""
        key_id = key_id or next(iter(self.keys))
        algorithm, key = self.keys[key_id]
        return jwt.encode(self.claims(**changes), key, algorithm, {"kid": key_id, **(headers or {})})


@contextmanager
def published(issuer: Issuer) -> Iterator[Issuer]:
    """The issuer's JWKS at its `url`, on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            if issuer.slow is not None:
                issuer.slow.wait(30)
            if issuer.away or issuer.moved_to:
                self.send_response(302 if issuer.moved_to else 503)
                self.send_header("Location", issuer.moved_to)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = issuer.jwks()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    issuer.url = f"http://127.0.0.1:{server.server_port}/keys"
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
