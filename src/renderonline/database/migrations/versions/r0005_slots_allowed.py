"""How many attempts at once each machine is allowed; those that joined before keep what they have."""

from alembic import op

from renderonline.database.migrations.versions.r0001_foundation import complete
from renderonline.database.schema import machines
from renderonline.farm.machines import MOST_SLOTS

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    complete()
    linked = machines.update().where(machines.c.secret_hash != "")
    op.execute(linked.values(slots_allowed=MOST_SLOTS))
