"""The existing system's database: its schema as the contract has it, and INSERT statements like its seed scripts'."""

import re

from tests.support.existing_schema import TABLES

V1_TABLES = {
    match[1]: " ".join(match[2].split())
    for match in (re.match(r"CREATE TABLE (\w+) \((.*)\) ENGINE", table, re.DOTALL) for table in TABLES)
    if match is not None
}
"""Name of the table -> its columns."""


def create_statements(kind: str) -> list[str]:
    """CREATE TABLE statements of the existing schema, for `mariadb` or translated for `sqlite`."""
    if kind == "mariadb":
        return list(TABLES)
    return [f"CREATE TABLE {name} ({_for_sqlite(name, columns)})" for name, columns in V1_TABLES.items()]


def _for_sqlite(name: str, columns: str) -> str:
    parts = []
    for column in columns.split(", "):
        words = column.split(" ")
        if "AUTO_INCREMENT" in words:
            parts.append(f"{words[0]} INTEGER PRIMARY KEY AUTOINCREMENT")
        elif not column.startswith("PRIMARY KEY") or name == "argtypes":
            parts.append(column.replace(" unsigned", ""))
    return ", ".join(parts)


SEEDS = (
    "INSERT INTO subscriptions (subscription_id, name, queue_limit) VALUES (1, 'Free', 3), (2, 'Pro', 10)",
    (
        "INSERT INTO users (user_id, first_name, last_name, email, subscription_id, is_active, token, userscol) VALUES "
        "(1, 'Ada', 'Lovelace', 'Ada@Example.org', 1, 1, 'raw-token-1', NULL), "
        "(2, 'Bob', 'Old', 'bob@example.org', 2, 0, 'raw-token-2', NULL)"
    ),
    (
        "INSERT INTO engines (engine_id, name, extension, download_path, render_argument) VALUES "
        "(1, 'blender', '.blend', '/srv/renders', 'blender -b $RENDERONLINE:@uploaded_file -a')"
    ),
    (
        "INSERT INTO argtypes (argtype_id, type, regex) VALUES ('start_frame', 'natural', NULL), "
        "('scene', 'word', '[A-Z]+')"
    ),
    "INSERT INTO machines (machine_id, ip_address, port) VALUES (1, '192.0.2.7', 5001), (2, '192.0.2.8', 5001)",
)

RENDERS = (
    "INSERT INTO renders (render_id, file_name, file_path, file_size, arguments, engine_id) VALUES "
    "({id}, 'scene.blend', '/srv/renders/1/638600000000000000/scene.blend', 1048576, "
    "'blender -b /srv/renders/1/638600000000000000/scene.blend -a', 1)"
)
TASKS = (
    "INSERT INTO tasks (task_id, user_id, queue_time, start_time, end_time, is_running, is_success, render_id, "
    "machine_id) VALUES ({id}, 1, {queue}, {start}, {end}, {running}, {success}, {id}, {machine})"
)
QUEUE = "INSERT INTO queue (task_id) VALUES ({id})"


def task_rows(
    task_id: int,
    *,
    queued: bool,
    queue: str | None = "2024-08-27 20:00:00",
    start: str | None = None,
    end: str | None = None,
    running: int = 0,
    success: int = 0,
    machine: int | None = None,
    render: bool = True,
) -> list[str]:
    """The INSERT statements of one task of the existing system."""

    def literal(value: object) -> str:
        return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)

    statements = [RENDERS.format(id=task_id)] if render else []
    statements.append(
        TASKS.format(
            id=task_id,
            queue=literal(queue),
            start=literal(start),
            end=literal(end),
            running=running,
            success=success,
            machine=literal(machine),
        )
    )
    return [*statements, *([QUEUE.format(id=task_id)] if queued else [])]
