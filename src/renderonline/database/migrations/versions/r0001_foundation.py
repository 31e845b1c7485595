"""Every table as `schema` has it, in an empty database or around the rows of the existing system.

Each step looks whether it is done, because MySQL commits every DDL statement by itself: a migration that was killed
half-way is simply run again. Databases of earlier versions take this way too: what is missing is added.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from renderonline.database.columns import Id
from renderonline.database.schema import farm, leases, metadata
from renderonline.farm.errors import InvalidRequest

revision = "0011"
down_revision = None
branch_labels = None
depends_on = None

NARROW = (mysql.TINYINT, mysql.SMALLINT, mysql.MEDIUMINT)


def upgrade() -> None:
    bind = op.get_bind()
    existing = {name for name in metadata.tables if sa.inspect(bind).has_table(name)}
    _note_origin(adopted=not existing <= {farm.name, leases.name})  # those two are made before all others
    for table in metadata.tables.values():
        if sa.inspect(bind).has_table(table.name):
            _complete(table)
        table.create(bind, checkfirst=True)
        for index in table.indexes:
            index.create(bind, checkfirst=True)


def _present(table: sa.Table) -> dict[str, sa.types.TypeEngine[object]]:
    return {column["name"]: column["type"] for column in sa.inspect(op.get_bind()).get_columns(table.name)}


def check(bind: sa.Connection, table: sa.Table) -> None:
    """A table of this name that lacks what can't be added is somebody else's."""
    if not sa.inspect(bind).has_table(table.name):
        return
    needed = {column.name for column in table.columns if not column.nullable and column.server_default is None}
    if missing := sorted(needed - {column["name"] for column in sa.inspect(bind).get_columns(table.name)}):
        raise InvalidRequest(
            f"The table {table.name} is there but has no column {', '.join(missing)}: this is not RenderOnline's "
            "schema. Name another database, or bring the table into its original form."
        )


def _note_origin(*, adopted: bool) -> None:
    """Before anything else is changed, so that it is known however often this is run again."""
    bind = op.get_bind()
    farm.create(bind, checkfirst=True)
    if bind.scalar(sa.select(farm.c.value).where(farm.c.key == "origin")) is None:
        bind.execute(farm.insert().values(key="origin", value="adopted" if adopted else "created"))
    if bind.dialect.name != "sqlite":
        op.execute("COMMIT")


def _complete(table: sa.Table) -> None:
    """Add the columns that the existing system does not have; widen its ids: 255 engines and machines are too few."""
    present = _present(table)
    for column in table.columns:
        if column.name not in present:
            op.add_column(table.name, column)
        elif column.type is Id and isinstance(old := present[column.name], NARROW):
            counts = column.autoincrement is True
            op.alter_column(
                table.name, column.name, type_=Id, existing_type=old, existing_nullable=column.nullable, autoincrement=counts
            )
