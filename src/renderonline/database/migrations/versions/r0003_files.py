"""Inputs of tasks, facts of scenes, films, and how long tasks stay."""

from renderonline.database.migrations.versions.r0001_foundation import complete

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    complete()
