"""Results that are delivered to a directory outside the farm."""

from renderonline.database.migrations.versions.r0001_foundation import complete

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    complete()
