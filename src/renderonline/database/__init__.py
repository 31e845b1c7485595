"""The farm's database: schema, migrations, queries. The only room that knows its SQL; the way in is `door.Database`."""
