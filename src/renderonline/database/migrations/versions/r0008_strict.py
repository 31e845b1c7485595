"""Tasks for which a missing file is a failure."""

from renderonline.database.migrations.versions.r0001_foundation import complete

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    complete()
