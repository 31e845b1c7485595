"""Steps of a migration. Each looks whether it is done, because MySQL commits every DDL statement by itself: a migration
that was killed half-way is simply run again."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem

from renderonline.farm.errors import InvalidRequest

ID = sa.Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")


def has_table(name: str) -> bool:
    """Whether the table exists."""
    return sa.inspect(op.get_bind()).has_table(name)


def table(name: str, *items: SchemaItem, autoincrement: bool = True) -> None:
    """Create a table unless it exists. An existing one must have at least these columns."""
    wanted = sa.Table(
        name,
        sa.MetaData(),
        *items,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        sqlite_autoincrement=autoincrement,
    )
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


def index(name: str, table_name: str, names: Sequence[str]) -> None:
    """Create an index unless it exists."""
    if name not in {item["name"] for item in sa.inspect(op.get_bind()).get_indexes(table_name)}:
        op.create_index(name, table_name, list(names))


def widen(table_name: str, name: str, *, nullable: bool = False, autoincrement: bool = False) -> None:
    """Make a column INT UNSIGNED on MySQL unless it is that or wider. SQLite's integers are all as wide."""
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":
        return
    for column in sa.inspect(bind).get_columns(table_name):
        if column["name"] == name and isinstance(column["type"], (mysql.TINYINT, mysql.SMALLINT, mysql.MEDIUMINT)):
            op.alter_column(
                table_name,
                name,
                type_=ID,
                existing_type=column["type"],
                existing_nullable=nullable,
                autoincrement=autoincrement,
            )
