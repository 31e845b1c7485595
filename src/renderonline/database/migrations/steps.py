"""Steps of a migration. Each looks whether it is done, because MySQL commits every DDL statement by itself: a migration
that was killed half-way is simply run again."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem

from renderonline.database import columns as words
from renderonline.farm.errors import InvalidRequest


def has_table(name: str) -> bool:
    """Whether the table exists."""
    return sa.inspect(op.get_bind()).has_table(name)


def table(name: str, *items: SchemaItem) -> None:
    """Create a table unless it exists. An existing one must have at least these columns."""
    wanted = words.table(name, sa.MetaData(), *items)
    if not has_table(name):
        wanted.create(op.get_bind())
        return
    present = {column["name"].lower() for column in sa.inspect(op.get_bind()).get_columns(name)}
    missing = [column.name for column in wanted.columns if column.name not in present]
    if missing:
        raise InvalidRequest(
            f"The table {name} is there but has no column {', '.join(missing)}: this is not RenderOnline's schema. "
            "Name another database, or bring the table into its original form."
        )


def columns(table_name: str, *new: sa.Column[object]) -> None:
    """Add those of the columns that are missing."""
    present = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table_name)}
    for column in new:
        if column.name not in present:
            op.add_column(table_name, column)


def index(name: str, table_name: str, *names: str) -> None:
    """Create an index unless it exists."""
    if name not in {item["name"] for item in sa.inspect(op.get_bind()).get_indexes(table_name)}:
        op.create_index(name, table_name, list(names))


def widen(table_name: str, name: str, *, nullable: bool = False, counts: bool = False) -> None:
    """Make a column INT UNSIGNED on MySQL unless it is that or wider. SQLite's integers are all as wide."""
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":
        return
    column = next(column for column in sa.inspect(bind).get_columns(table_name) if column["name"] == name)
    old = column["type"]
    if isinstance(old, (mysql.TINYINT, mysql.SMALLINT, mysql.MEDIUMINT)):
        op.alter_column(
            table_name, name, type_=words.Id, existing_type=old, existing_nullable=nullable, autoincrement=counts
        )
