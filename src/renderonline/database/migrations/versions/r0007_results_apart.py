"""Results lie in a folder of their own; those of tasks that are there already stay where they are."""

from renderonline.database.migrations.versions.r0001_foundation import complete

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    complete()
