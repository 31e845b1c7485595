"""Commands about tasks: list, watch, logs, explain, download, cancel, pause, resume, retry, delete."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from renderonline.cli import show
from renderonline.cli.options import Json, TaskId, TaskIds, Url, Yes
from renderonline.rnoclient.sdk import ENDED, Attempt, Client, Task

LOG_POLL_S = 1.0


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (tasks, watch, logs, explain, download, cancel, pause, resume, retry, delete):
        app.command()(command)


def tasks(
    *,
    task: Annotated[int | None, typer.Argument(metavar="[TASK]", min=1, help="Show this one in full.")] = None,
    status: Annotated[
        str | None, typer.Option(help="queued, running, paused, succeeded, failed or canceled.", metavar="STATUS")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Only tasks of this engine.", metavar="NAME")] = None,
    search: Annotated[str | None, typer.Option(help="Only tasks with this in their name.", metavar="TEXT")] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Everybody's tasks (operators).")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.", metavar="NUMBER")] = 20,
    json: Json = False,
    url: Url = None,
) -> None:
    """List your tasks, newest first, or show one.

    \b
    renderonline tasks --status running
    renderonline tasks 12
    renderonline tasks --all --json | jq '.[].task_id'
    """
    with _connect(url) as client:
        if task is not None:
            _show_one(client, task, as_json=json)
            return
        found = list(client.tasks(status=status, engine=engine, search=search, everybody=everybody, limit=limit))
    if json:
        show.emit(found)
        return
    if not found:
        show.say("No tasks. Submit one: renderonline submit FILE --frames 1-24")
        return
    columns = [">TASK", "NAME", "ENGINE", "STATUS", ">FRAMES", ">DONE", "QUEUED", *(["USER"] if everybody else [])]
    show.table(columns, [_row(item)[: len(columns)] for item in found])


def watch(*, task: TaskId, json: Json = False, url: Url = None) -> None:
    """Follow a task until it ends.

    Exit code 1 when it did not succeed.

    \b
    renderonline watch 12
    renderonline watch 12 --json      one JSON object a line
    """
    with _connect(url) as client:
        raise typer.Exit(follow(client, task, as_json=json))


def follow(client: Client, task_id: int, *, as_json: bool) -> int:
    """Show a task until it ends; the exit code that says how."""
    from renderonline.cli.progress import describe, task_view

    task: Task | None = None
    with task_view(as_json=as_json) as update:
        for task in client.watch(task_id):
            update(task)
    if task is None or task["status"] != "succeeded":
        if task is not None and not as_json:
            show.note(f"{describe(task)}\nSee why: renderonline logs {task_id}")
        return 1
    return 0


def logs(
    *,
    task: TaskId,
    attempt: Annotated[int | None, typer.Option(min=1, help="This attempt (see --list).", metavar="ID")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the attempt ends.")] = False,
    attempts: Annotated[bool, typer.Option("--list", help="List the attempts instead.")] = False,
    json: Json = False,
    url: Url = None,
) -> None:
    """Print what the engine wrote.

    Of the newest attempt that failed, else of the newest one.

    \b
    renderonline logs 12
    renderonline logs 12 --list
    renderonline logs 12 --attempt 1099511627790 --follow
    """
    from renderonline.farm.errors import NotFound

    with _connect(url) as client:
        found = list(client.attempts(task))
        if attempts:
            _list_attempts(found, as_json=json)
            return
        chosen = [item for item in found if item["attempt_id"] == attempt] if attempt else _interesting(found)
        if not chosen:
            raise NotFound(f"Task {task} has no such attempt. See `renderonline logs {task} --list`.")
        _print_log(client, task, chosen[-1]["attempt_id"], follow=follow, as_json=json)


def explain(*, task: TaskId, json: Json = False, url: Url = None) -> None:
    """Say why a task waits, or why it is not faster.

    \b
    renderonline explain 12
    """
    with _connect(url) as client:
        reasons = client.explain(task)
    if json:
        show.emit({"reasons": reasons})
        return
    for reason in reasons:
        show.say(str(reason.get("message", reason)) if isinstance(reason, dict) else str(reason))


def download(
    *,
    task: TaskId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory (with --zip: file) to write.", metavar="PATH")
    ] = None,
    as_zip: Annotated[bool, typer.Option("--zip", help="One ZIP file with the scene and all results.")] = False,
    json: Json = False,
    url: Url = None,
) -> None:
    """Download a task's results.

    What is there already is not sent again; what was cut goes on.

    \b
    renderonline download 12                  into ./task-12/
    renderonline download 12 -o shots/a
    renderonline download 12 --zip -o a.zip
    """
    from renderonline.cli.progress import bytes_bar

    with _connect(url) as client:
        if as_zip:
            with bytes_bar("Downloading", quiet=json) as step:
                paths = [client.download_zip(task, output or Path(f"task-{task}.zip"), progress=step)]
        else:
            paths = fetch_results(client, task, output or Path(f"task-{task}"), quiet=json)
    if json:
        show.emit({"files": [str(path) for path in paths]})
    else:
        where = paths[0] if as_zip else output or Path(f"task-{task}")
        show.say(f"{where}  ({len(paths)} {'file' if len(paths) == 1 else 'files'})")


def fetch_results(client: Client, task_id: int, directory: Path, *, quiet: bool) -> list[Path]:
    """Download the results with a bar."""
    from renderonline.cli.progress import count_bar

    with count_bar("Downloading", quiet=quiet) as step:
        return client.download_results(task_id, directory, progress=lambda result, number, count: step(number, count))


def cancel(*, task: TaskIds, json: Json = False, url: Url = None) -> None:
    """Take tasks from the queue and stop what runs of them.

    \b
    renderonline cancel 12 13
    """
    _act(task, Client.cancel, as_json=json, url=url)


def pause(*, task: TaskIds, json: Json = False, url: Url = None) -> None:
    """Start nothing new of these tasks; what runs goes on.

    \b
    renderonline pause 12
    """
    _act(task, Client.pause, as_json=json, url=url)


def resume(*, task: TaskIds, json: Json = False, url: Url = None) -> None:
    """Go on with paused tasks.

    \b
    renderonline resume 12
    """
    _act(task, Client.resume, as_json=json, url=url)


def retry(*, task: TaskIds, json: Json = False, url: Url = None) -> None:
    """Render again what failed or was canceled.

    Finished frames stay.

    \b
    renderonline retry 12
    """
    _act(task, Client.retry, as_json=json, url=url)


def delete(*, task: TaskIds, yes: Yes = False, json: Json = False, url: Url = None) -> None:
    """Delete tasks with scene and results.

    \b
    renderonline delete 12 --yes
    """
    if not yes and not json:
        numbers = ", ".join(map(str, task))
        typer.confirm(f"Delete task {numbers} with the scene and all results?", abort=True)
    with _connect(url) as client:
        for task_id in task:
            client.delete(task_id)
            if not json:
                show.say(f"task {task_id} deleted")
    if json:
        show.emit({"deleted": task})


def _connect(url: str | None) -> Client:
    from renderonline.cli.logins import connect

    return connect(url)


def _act(task_ids: list[int], action: Callable[[Client, int], Task], *, as_json: bool, url: str | None) -> None:
    from renderonline.cli.progress import describe

    with _connect(url) as client:
        done = [action(client, task_id) for task_id in task_ids]
    if as_json:
        show.emit(done)
    else:
        for task in done:
            show.say(describe(task))


def _row(task: Task) -> list[object]:
    frames = f"{task['frames_done']}/{task['frames_total']}" if task["frames_total"] else ""
    shown = "paused" if task["paused"] and task["status"] not in ENDED else task["status"]
    done = show.percent(task["progress"])
    name = task["name"] or task["file_name"]
    return [task["task_id"], name, task["engine"], shown, frames, done, show.when(task["queued"]), task["email"]]


def _show_one(client: Client, task_id: int, *, as_json: bool) -> None:
    task = client.task(task_id)
    if as_json:
        show.emit(task)
        return
    shown = {**task, "file_size": show.size(task["file_size"]), "progress": show.percent(task["progress"])}
    shown |= {name: show.when(task[name]) for name in ("queued", "started", "ended")}
    names = ["task_id", "name", "status", "reason", "engine", "file_name", "file_size", "arguments", "frames"]
    show.fields(shown, [*names, "frames_done", "progress", "chunks", "priority", "queued", "started", "ended"])


def _list_attempts(found: list[Attempt], *, as_json: bool) -> None:
    if as_json:
        show.emit(found)
        return
    columns = [">ATTEMPT", "MACHINE", "STATE", "FRAMES", ">EXIT", "STARTED", "REASON"]
    show.table(
        columns,
        (
            [
                item["attempt_id"],
                item["machine"],
                item["outcome"] or item["state"],
                item["frames"],
                item["exit_code"],
                show.when(item["started"]),
                item["reason"],
            ]
            for item in found
        ),
    )


def _interesting(found: list[Attempt]) -> list[Attempt]:
    ordered = sorted(found, key=lambda item: item["attempt_id"])
    failed = [item for item in ordered if item["outcome"] not in (None, "succeeded", "canceled")]
    return failed or ordered


def _print_log(client: Client, task_id: int, attempt_id: int, *, follow: bool, as_json: bool) -> None:
    offset = 0
    while True:
        ended = not follow or _has_ended(client, task_id, attempt_id)
        text, offset = client.log(attempt_id, offset)
        if text and as_json:
            show.emit({"attempt_id": attempt_id, "text": text, "offset": offset})
        elif text:
            print(show.plain(text), end="", flush=True)
        if ended:
            return
        time.sleep(LOG_POLL_S)


def _has_ended(client: Client, task_id: int, attempt_id: int) -> bool:
    return all(item["state"] == "ended" for item in client.attempts(task_id) if item["attempt_id"] == attempt_id)
