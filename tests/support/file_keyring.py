"""A keyring in a file, for tests: the desktop program finds it by `PYTHON_KEYRING_BACKEND`."""

import json
import os
from pathlib import Path

from keyring.backend import KeyringBackend
from keyring.errors import PasswordDeleteError


class FileKeyring(KeyringBackend):
    """Keeps passwords in the JSON file that `TEST_KEYRING` names."""

    priority = 1

    def _read(self) -> dict[str, str]:
        path = Path(os.environ["TEST_KEYRING"])
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _write(self, content: dict[str, str]) -> None:
        Path(os.environ["TEST_KEYRING"]).write_text(json.dumps(content))

    def get_password(self, service: str, username: str) -> str | None:
        return self._read().get(f"{service}/{username}")

    def set_password(self, service: str, username: str, password: str) -> None:
        self._write(self._read() | {f"{service}/{username}": password})

    def delete_password(self, service: str, username: str) -> None:
        content = self._read()
        if content.pop(f"{service}/{username}", None) is None:
            raise PasswordDeleteError
        self._write(content)
