"""The database: schema, migrations, queries. The only room that knows SQL; its front door is `door.Database`."""
