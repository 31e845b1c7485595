"""The schema's history: Alembic revisions. The first is exactly the existing system's schema; the others only add."""
