"""Warnings of a task."""

from renderonline.database.migrations.versions.r0001_foundation import complete

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    complete()
