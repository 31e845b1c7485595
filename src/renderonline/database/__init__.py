"""The database: schema, migrations, queries. The only room that knows SQL; its front door is `Database`."""

from sqlalchemy import Connection

from renderonline.database.door import Database

__all__ = ["Connection", "Database"]
