"""Which uploaded files tasks still name; asked at start, for what a killed program left on the disk."""

from sqlalchemy import Connection, select

from renderonline.database.schema import renders


def names_directory(connection: Connection, directory: str) -> bool:
    """Whether the uploaded file of any task lies in `directory`. Looks through all renders."""
    inside = renders.c.file_path.startswith(f"{directory}/", autoescape=True)
    return connection.scalar(select(renders.c.render_id).where(inside).limit(1)) is not None
