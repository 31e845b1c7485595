"""Rows that a farm needs before anything can be submitted, and tasks to submit."""

import itertools
from datetime import datetime

from sqlalchemy import Connection

from renderonline.database import administration_rows, submission_rows
from renderonline.database.submission_rows import NewChunk, NewTask, Submitted
from renderonline.farm.accounts import Role, User, hash_token
from renderonline.farm.frames import cut, parse_frames

TOKEN = "a-token-of-the-tests"
NOW_US = 1_800_000_000_000_000
_numbers = itertools.count(1)
_chunk_ids = itertools.count(1)


def add_user(
    connection: Connection, email: str = "", *, limit: int = 100, role: Role = Role.ARTIST, token: str = TOKEN
) -> User:
    """A user with a subscription of their own, with this queue limit."""
    email = email or f"user{next(_numbers)}@example.org"
    subscription = administration_rows.add_subscription(connection, f"for {email}"[:50], limit)
    new = administration_rows.NewUser(email, hash_token(token), subscription.subscription_id, "Ada", "Lovelace", role)
    return administration_rows.add_user(connection, new, now_us=NOW_US)


def add_engine(connection: Connection, name: str = "blender", download_path: str = "/srv/renders") -> int:
    """An engine; gives its id."""
    new = submission_rows.NewEngine(name, ".blend", download_path, "blender -b $RENDERONLINE:@uploaded_file -a")
    return administration_rows.add_engine(connection, new).engine_id


def new_task(
    user_id: int, engine_id: int = 1, *, frames: str = "", chunk_size: int = 0, client_key: str = "", **more: object
) -> NewTask:
    """A task to submit; its chunks get fresh ids."""
    numbers = parse_frames(frames) if frames else ()
    ranges = cut(numbers, chunk_size) if frames else (None,)
    return NewTask(
        **{
            "user_id": user_id,
            "engine_id": engine_id,
            "file_name": "scene.blend",
            "file_path": f"/srv/renders/{user_id}/1/scene.blend",
            "file_size": 1234,
            "arguments": "blender -b scene.blend -a",
            "values": '{"start_frame": "1"}',
            "template": '["-b", "$RENDERONLINE:@uploaded_file"]',
            "queue_us": NOW_US,
            "queue_time": datetime.fromtimestamp(NOW_US / 1e6),
            "chunks": [NewChunk(next(_chunk_ids), part) for part in ranges],
            "frames": frames,
            "frames_total": len(numbers),
            "chunk_size": chunk_size,
            "client_key": client_key,
            **more,
        }
    )


def submit(connection: Connection, user_id: int, engine_id: int = 1, **more: object) -> Submitted:
    """Submit a task of this user."""
    return submission_rows.submit(connection, new_task(user_id, engine_id, **more))
