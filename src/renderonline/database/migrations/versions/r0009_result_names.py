"""Names under which results leave the farm."""

from renderonline.database.migrations.versions.r0001_foundation import complete

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    complete()
