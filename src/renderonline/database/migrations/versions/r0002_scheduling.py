"""Needs, limits, pools, benches, notifications and the dispatcher's lease."""

from renderonline.database.migrations.versions.r0001_foundation import complete

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    complete()
