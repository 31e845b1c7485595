"""The existing system's database: its schema as the contract has it, and INSERT statements like its seed scripts'."""

V1_TABLES = {
    "users": (
        "user_id smallint unsigned NOT NULL AUTO_INCREMENT, first_name varchar(50) NOT NULL, "
        "last_name varchar(50) NOT NULL, email varchar(255) NOT NULL, subscription_id tinyint unsigned NOT NULL, "
        "is_active tinyint NOT NULL, token text NOT NULL, userscol varchar(45) DEFAULT NULL, PRIMARY KEY (user_id)"
    ),
    "subscriptions": (
        "subscription_id tinyint unsigned NOT NULL AUTO_INCREMENT, name varchar(50) NOT NULL, "
        "queue_limit tinyint unsigned NOT NULL, PRIMARY KEY (subscription_id)"
    ),
    "engines": (
        "engine_id tinyint unsigned NOT NULL AUTO_INCREMENT, name varchar(50) NOT NULL, "
        "extension varchar(50) NOT NULL, download_path text NOT NULL, render_argument text NOT NULL, "
        "PRIMARY KEY (engine_id)"
    ),
    "argtypes": (
        "argtype_id varchar(50) NOT NULL, type varchar(20) NOT NULL, regex text, PRIMARY KEY (argtype_id)"
    ),
    "machines": (
        "machine_id tinyint unsigned NOT NULL AUTO_INCREMENT, ip_address varchar(45) NOT NULL, "
        "port int unsigned NOT NULL, PRIMARY KEY (machine_id)"
    ),
    "renders": (
        "render_id bigint unsigned NOT NULL AUTO_INCREMENT, file_name varchar(255) NOT NULL, file_path text NOT NULL, "
        "file_size bigint NOT NULL, arguments text NOT NULL, engine_id tinyint unsigned NOT NULL, "
        "PRIMARY KEY (render_id)"
    ),
    "tasks": (
        "task_id bigint unsigned NOT NULL AUTO_INCREMENT, user_id smallint unsigned NOT NULL, "
        "queue_time datetime DEFAULT NULL, start_time datetime DEFAULT NULL, end_time datetime DEFAULT NULL, "
        "is_running tinyint NOT NULL, is_success tinyint NOT NULL, render_id bigint unsigned NOT NULL, "
        "machine_id tinyint unsigned DEFAULT NULL, PRIMARY KEY (task_id)"
    ),
    "queue": (
        "queue_id bigint unsigned NOT NULL AUTO_INCREMENT, task_id bigint unsigned NOT NULL, PRIMARY KEY (queue_id)"
    ),
}


def create_statements(kind: str) -> list[str]:
    """CREATE TABLE statements of the existing schema, for `mariadb` or translated for `sqlite`."""
    if kind == "mariadb":
        return [
            f"CREATE TABLE `{name}` ({columns}) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"
            for name, columns in V1_TABLES.items()
        ]
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
    "INSERT INTO users (user_id, first_name, last_name, email, subscription_id, is_active, token, userscol) VALUES "
    "(1, 'Ada', 'Lovelace', 'Ada@Example.org', 1, 1, 'raw-token-1', NULL), "
    "(2, 'Bob', 'Old', 'bob@example.org', 2, 0, 'raw-token-2', NULL)",
    "INSERT INTO engines (engine_id, name, extension, download_path, render_argument) VALUES "
    "(1, 'blender', '.blend', '/srv/renders', 'blender -b $RENDERONLINE:@uploaded_file -a')",
    "INSERT INTO argtypes (argtype_id, type, regex) VALUES ('start_frame', 'natural', NULL), "
    "('scene', 'word', '[A-Z]+')",
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
