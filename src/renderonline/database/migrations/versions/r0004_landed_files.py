"""When the file of a result was last written to; the results that are landing have an index of their own."""

import sqlalchemy as sa
from alembic import op

from renderonline.database.migrations.versions.r0001_foundation import complete

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BEFORE = "ix_results_state"


def upgrade() -> None:
    complete()
    if _BEFORE in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes("results")}:
        op.drop_index(_BEFORE, "results")
