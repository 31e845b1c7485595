"""The existing system's schema: the eight tables of the wire contract, exactly; tables that exist are kept as they are."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from renderonline.database.migrations import steps

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

V1_TABLES = ("users", "subscriptions", "engines", "argtypes", "machines", "renders", "tasks", "queue")

Tiny = sa.Integer().with_variant(mysql.TINYINT(unsigned=True), "mysql", "mariadb")
Small = sa.Integer().with_variant(mysql.SMALLINT(unsigned=True), "mysql", "mariadb")
Big = sa.BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb").with_variant(sa.Integer, "sqlite")
Flag = sa.SmallInteger().with_variant(mysql.TINYINT(), "mysql", "mariadb")


def upgrade() -> None:
    _origin()
    _accounts()
    _farm()
    _work()


def _origin() -> None:
    """Note whether there was anything before us. First of all, so that it is known however often this is run again."""
    adopted = any(steps.has_table(name) for name in V1_TABLES)
    steps.table(
        "farm",
        sa.Column("key", sa.String(50), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        autoincrement=False,
    )
    farm = sa.table("farm", sa.column("key"), sa.column("value"))
    bind = op.get_bind()
    if bind.scalar(sa.select(farm.c.value).where(farm.c.key == "origin")) is None:
        bind.execute(farm.insert().values(key="origin", value="adopted" if adopted else "created"))
    if bind.dialect.name != "sqlite":
        op.execute("COMMIT")


def _accounts() -> None:
    steps.table(
        "users",
        sa.Column("user_id", Small, primary_key=True, autoincrement=True),
        sa.Column("first_name", sa.String(50), nullable=False),
        sa.Column("last_name", sa.String(50), nullable=False),
        sa.Column("email", sa.String(255), nullable=False),
        sa.Column("subscription_id", Tiny, nullable=False),
        sa.Column("is_active", Flag, nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("userscol", sa.String(45)),
    )
    steps.table(
        "subscriptions",
        sa.Column("subscription_id", Tiny, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(50), nullable=False),
        sa.Column("queue_limit", Tiny, nullable=False),
    )


def _farm() -> None:
    steps.table(
        "engines",
        sa.Column("engine_id", Tiny, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(50), nullable=False),
        sa.Column("extension", sa.String(50), nullable=False),
        sa.Column("download_path", sa.Text, nullable=False),
        sa.Column("render_argument", sa.Text, nullable=False),
    )
    steps.table(
        "argtypes",
        sa.Column("argtype_id", sa.String(50), primary_key=True),
        sa.Column("type", sa.String(20), nullable=False),
        sa.Column("regex", sa.Text),
        autoincrement=False,
    )
    steps.table(
        "machines",
        sa.Column("machine_id", Tiny, primary_key=True, autoincrement=True),
        sa.Column("ip_address", sa.String(45), nullable=False),
        sa.Column("port", steps.ID, nullable=False),
    )


def _work() -> None:
    steps.table(
        "renders",
        sa.Column("render_id", Big, primary_key=True, autoincrement=True),
        sa.Column("file_name", sa.String(255), nullable=False),
        sa.Column("file_path", sa.Text, nullable=False),
        sa.Column("file_size", sa.BigInteger, nullable=False),
        sa.Column("arguments", sa.Text, nullable=False),
        sa.Column("engine_id", Tiny, nullable=False),
    )
    steps.table(
        "tasks",
        sa.Column("task_id", Big, primary_key=True, autoincrement=True),
        sa.Column("user_id", Small, nullable=False),
        sa.Column("queue_time", sa.DateTime),
        sa.Column("start_time", sa.DateTime),
        sa.Column("end_time", sa.DateTime),
        sa.Column("is_running", Flag, nullable=False),
        sa.Column("is_success", Flag, nullable=False),
        sa.Column("render_id", Big, nullable=False),
        sa.Column("machine_id", Tiny),
    )
    steps.table(
        "queue",
        sa.Column("queue_id", Big, primary_key=True, autoincrement=True),
        sa.Column("task_id", Big, nullable=False),
    )
