"""The words in which tables are written, for the schema and for its migrations."""

from typing import Any

from sqlalchemy import BigInteger, Column, Integer, MetaData, SmallInteger, Table, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

Kind = TypeEngine[Any] | type[TypeEngine[Any]]

Big = BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb").with_variant(Integer, "sqlite")
Id = Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")
"""Engines, machines, users, subscriptions and small counts: wider than v1's, 255 are not enough."""
Flag = SmallInteger().with_variant(mysql.TINYINT(), "mysql", "mariadb")
Long = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def key(kind: Kind, *names: str, counts: bool = False) -> list[Column[object]]:
    """The primary key; one that `counts` gives each new row the next id, and none twice (R1.1 Unique ids)."""
    return [Column(name, kind, primary_key=True, autoincrement=counts) for name in names]


def required(kind: Kind, *names: str, default: str | None = None) -> list[Column[object]]:
    """Columns that are never null."""
    return [Column(name, kind, nullable=False, server_default=default) for name in names]


def optional(kind: Kind, *names: str) -> list[Column[object]]:
    """Columns that may be null."""
    return [Column(name, kind) for name in names]


def table(metadata: MetaData, name: str, *items: SchemaItem) -> Table:
    """A table as all of ours are made."""
    counts = any(isinstance(item, Column) and item.autoincrement is True for item in items)
    dialects: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"}
    dialects |= {"mariadb_engine": "InnoDB", "mariadb_charset": "utf8mb4", "sqlite_autoincrement": counts}
    return Table(name, metadata, *items, **dialects)
