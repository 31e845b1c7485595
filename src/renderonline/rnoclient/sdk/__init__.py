"""The Python SDK: RenderAPI's `/renderapi/v2` with the standard library alone, so that it also runs inside Blender.

from renderonline.rnoclient.sdk import Client, Login

with Client(Login("http://farm:5000", "me@studio.org", token)) as farm:
    task = farm.submit("shot.blend", engine="blender", frames="1-24")
    for state in farm.watch(task["task_id"]):
        print(state["status"], state["frames_done"])
    farm.download_results(task["task_id"], "shot")
"""

from renderonline.farm.errors import (
    Conflict,
    InvalidRequest,
    LimitReached,
    NoSpace,
    NotAllowed,
    NotAuthenticated,
    NotAvailable,
    NotFound,
    RenderOnlineError,
    TooLarge,
)
from renderonline.protocol.calls import UNREACHABLE
from renderonline.rnoclient.sdk.client import Client
from renderonline.rnoclient.sdk.connection import ENDED, Item, Login, Task
from renderonline.rnoclient.sdk.uploading import UploadOptions

__all__ = [
    "ENDED",
    "UNREACHABLE",
    "Client",
    "Conflict",
    "InvalidRequest",
    "Item",
    "LimitReached",
    "Login",
    "NoSpace",
    "NotAllowed",
    "NotAuthenticated",
    "NotAvailable",
    "NotFound",
    "RenderOnlineError",
    "Task",
    "TooLarge",
    "UploadOptions",
]
