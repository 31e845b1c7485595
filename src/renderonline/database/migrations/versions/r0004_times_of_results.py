"""When the file of a result was last written to."""

from renderonline.database.migrations.versions.r0001_foundation import complete

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    complete()
