"""The calls for operators and administrators: users, subscriptions, engines, argtypes, machines."""

from typing import cast
from urllib.parse import quote

from renderonline.rnoclient.sdk.connection import Connection
from renderonline.rnoclient.sdk.types import Item


class Admin:
    """Administration over `/renderapi/v2`; `NotAllowed` for those who may not."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def users(self) -> list[Item]:
        """All accounts."""
        return self._list("/users")

    def add_user(self, **fields: object) -> Item:
        """A new account: email, first_name, last_name, subscription_id, role. The answer may carry its token."""
        return self._send("POST", "/users", fields)

    def change_user(self, user_id: int, **fields: object) -> Item:
        """Change some fields of an account."""
        return self._send("PATCH", f"/users/{user_id:d}", fields)

    def new_token(self, user_id: int) -> str:
        """A new token for the account; the old one ends. It is shown once and stored as a hash (R12 Tokens)."""
        return str(self._send("POST", f"/users/{user_id:d}/token")["token"])

    def log_out(self, user_id: int) -> None:
        """End the account's token, sessions and event streams; it can do nothing until it gets a new token."""
        self._connection.call("POST", f"/users/{user_id:d}/logout")

    def subscriptions(self) -> list[Item]:
        """All subscriptions."""
        return self._list("/subscriptions")

    def add_subscription(self, **fields: object) -> Item:
        """A new subscription: name, queue_limit, share, running_limit, keep_days, keep_mib, names."""
        return self._send("POST", "/subscriptions", fields)

    def change_subscription(self, subscription_id: int, **fields: object) -> Item:
        """Change some fields of a subscription."""
        return self._send("PATCH", f"/subscriptions/{subscription_id:d}", fields)

    def engines(self) -> list[Item]:
        """All engines of the farm."""
        return self._list("/engines")

    def add_engine(self, definition: str, download_path: str | None = None) -> Item:
        """A new engine from the text of its TOML definition."""
        return self._send("POST", "/engines", {"definition": definition, "download_path": download_path})

    def change_engine(self, engine_id: int, **fields: object) -> Item:
        """Change an engine: definition, download_path, is_enabled."""
        return self._send("PATCH", f"/engines/{engine_id:d}", fields)

    def remove_engine(self, engine_id: int) -> None:
        """Remove an engine that no task uses."""
        self._connection.call("DELETE", f"/engines/{engine_id:d}")

    def argtypes(self) -> list[Item]:
        """All types of arguments."""
        return self._list("/argtypes")

    def put_argtype(self, argtype_id: str, argtype: str, regex: str | None = None) -> Item:
        """Make or replace an argtype."""
        return self._send("PUT", f"/argtypes/{quote(argtype_id, safe='')}", {"type": argtype, "regex": regex})

    def remove_argtype(self, argtype_id: str) -> None:
        """Remove an argtype."""
        self._connection.call("DELETE", f"/argtypes/{quote(argtype_id, safe='')}")

    def machines(self) -> list[Item]:
        """All machines and what they do now."""
        return self._list("/machines")

    def add_machine(self, ip_address: str, port: int) -> Item:
        """A machine that speaks v1, by its address; linked machines join by themselves (`invite`)."""
        return self._send("POST", "/machines", {"ip_address": ip_address, "port": port})

    def change_machine(self, machine_id: int, **fields: object) -> Item:
        """Change a machine: wish (active, draining, disabled), name, reason, tags (list), pool, hours, slots_allowed
        (0: four, or its cores if fewer)."""
        return self._send("PATCH", f"/machines/{machine_id:d}", fields)

    def remove_machine(self, machine_id: int) -> None:
        """Forget a machine; its secret is worth nothing afterwards."""
        self._connection.call("DELETE", f"/machines/{machine_id:d}")

    def restart_machine(self, machine_id: int) -> None:
        """Have a linked machine's program end after its work; its service starts it again, perhaps a newer one."""
        self._connection.call("POST", f"/machines/{machine_id:d}/restart")

    def invite(self, uses: int = 1, hours: float = 24, slots: int = 0) -> Item:
        """A code with which machines join: {code, expires, command, first, install}. `slots`: how many each of them may
        have; 0: four, or its cores if fewer. `first`: what must be changed before others reach the farm; `install`:
        where pip finds this version of the program; both null for nothing."""
        about = {"uses": uses, "hours": hours, **({"slots": slots} if slots else {})}
        return self._send("POST", "/machines/invite", about)

    def _list(self, path: str) -> list[Item]:
        return cast("list[Item]", self._connection.call("GET", path).json()["items"])

    def _send(self, method: str, path: str, data: object = None) -> Item:
        return cast("Item", self._connection.call(method, path, data=data).json())
