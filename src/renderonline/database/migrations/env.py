"""Run by Alembic: takes the connection that `migrating` hands over and runs the revisions on it."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
