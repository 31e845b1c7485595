"""The existing system's schema: the eight tables of the wire contract, exactly; tables that exist are kept as they are."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from renderonline.database.columns import Big, Flag, Id, key, optional, required
from renderonline.database.migrations import steps

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Tiny = sa.Integer().with_variant(mysql.TINYINT(unsigned=True), "mysql", "mariadb")
Small = sa.Integer().with_variant(mysql.SMALLINT(unsigned=True), "mysql", "mariadb")

V1_TABLES = {
    "users": (
        *key(Small, "user_id", counts=True),
        *required(sa.String(50), "first_name", "last_name"),
        *required(sa.String(255), "email"),
        *required(Tiny, "subscription_id"),
        *required(Flag, "is_active"),
        *required(sa.Text, "token"),
        *optional(sa.String(45), "userscol"),
    ),
    "subscriptions": (
        *key(Tiny, "subscription_id", counts=True),
        *required(sa.String(50), "name"),
        *required(Tiny, "queue_limit"),
    ),
    "engines": (
        *key(Tiny, "engine_id", counts=True),
        *required(sa.String(50), "name", "extension"),
        *required(sa.Text, "download_path", "render_argument"),
    ),
    "argtypes": (*key(sa.String(50), "argtype_id"), *required(sa.String(20), "type"), *optional(sa.Text, "regex")),
    "machines": (
        *key(Tiny, "machine_id", counts=True),
        *required(sa.String(45), "ip_address"),
        *required(Id, "port"),
    ),
    "renders": (
        *key(Big, "render_id", counts=True),
        *required(sa.String(255), "file_name"),
        *required(sa.Text, "file_path"),
        *required(sa.BigInteger, "file_size"),
        *required(sa.Text, "arguments"),
        *required(Tiny, "engine_id"),
    ),
    "tasks": (
        *key(Big, "task_id", counts=True),
        *required(Small, "user_id"),
        *optional(sa.DateTime, "queue_time", "start_time", "end_time"),
        *required(Flag, "is_running", "is_success"),
        *required(Big, "render_id"),
        *optional(Tiny, "machine_id"),
    ),
    "queue": (*key(Big, "queue_id", counts=True), *required(Big, "task_id")),
}


def upgrade() -> None:
    _origin()
    for name, columns in V1_TABLES.items():
        steps.table(name, *(column.copy() for column in columns))


def _origin() -> None:
    """Note whether there was anything before us. First of all, so that it is known however often this is run again."""
    adopted = any(steps.has_table(name) for name in V1_TABLES)
    steps.table("farm", *key(sa.String(50), "key"), *required(sa.Text, "value"))
    farm = sa.table("farm", sa.column("key"), sa.column("value"))
    bind = op.get_bind()
    if bind.scalar(sa.select(farm.c.value).where(farm.c.key == "origin")) is None:
        bind.execute(farm.insert().values(key="origin", value="adopted" if adopted else "created"))
    if bind.dialect.name != "sqlite":
        op.execute("COMMIT")
