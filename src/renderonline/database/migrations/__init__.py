"""The schema's history: Alembic revisions. The first adopts the existing system's tables; all of them only add."""
