"""Commands for tasks: list and follow them, download results, cancel, pause, requeue, change and delete them."""

import json as json_text
import sys
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from renderonline.cli import terminal
from renderonline.cli.terminal import TASK, TASKS, YES, Output, argument, command, confirm, flag, group, listing, option
from renderonline.farm.errors import Conflict, InvalidRequest, LimitReached, NotFound, RenderOnlineError
from renderonline.farm.tasks import chooser
from renderonline.rnoclient.sdk import ENDED, Client, Item, Task

commands = group("Tasks.")
LOG_POLL_S = 1.0
_INTEGRITY = {
    "altered": "Somebody changed results on the server: requeue these frames, or have an operator accept them.",
    "not_compared": "There are no digests with which its files could be compared (renderonline accept).",
}
COLUMNS: terminal.Columns = {
    ">TASK": "task_id",
    "NAME": lambda task: task["name"] or task["file_name"],
    "ENGINE": "engine",
    "STATUS": lambda task: _status(task),
    ">FRAMES": lambda task: f"{task['frames_done']}/{task['frames_total']}" if task["frames_total"] else "",
    ">DONE": lambda task: terminal.percent(task["progress"]),
    "QUEUED": lambda task: terminal.when(task["queued"]),
}
ATTEMPT_COLUMNS: terminal.Columns = {
    ">ATTEMPT": "attempt_id",
    ">CHUNK": "chunk_id",
    "MACHINE": "machine",
    "STATE": lambda attempt: attempt["outcome"] or attempt["state"],
    "FRAMES": "frames",
    ">EXIT": "exit_code",
    "STARTED": lambda attempt: terminal.when(attempt["started"]),
    "REASON": "reason",
}


@command(
    commands,
    "renderonline tasks --status running",
    "renderonline tasks 12",
    "renderonline tasks --all --json | jq '.[].task_id'",
)
def tasks(
    client: Client,
    *,
    task: int | None = argument("[TASK]", "Show this task in full.", min=1, default=None),
    status: str | None = option("STATUS", "queued, running, paused, succeeded, failed or canceled."),
    engine: str | None = option("NAME", "Only tasks of this engine."),
    search: str | None = option("TEXT", "Only tasks with this in their name."),
    everybody: bool = flag("--all", "Everybody's tasks (operators)."),
    limit: int = option("NUMBER", "How many at most.", "--limit", "-n", default=20, min=1),
) -> Output:
    """List your tasks, newest first, or show one."""
    if task is not None:
        found = client.task(task)
        return found, lambda: _show_one(found)
    tasks = list(client.tasks(status=status, engine=engine, search=search, everybody=everybody, limit=limit))
    columns = {**COLUMNS, "USER": "email"} if everybody else COLUMNS
    return listing(columns, tasks, "No tasks. Submit one: renderonline submit FILE --frames 1-24")


@command(commands, "renderonline watch 12", "renderonline watch 12 --json      one JSON object a line")
def watch(client: Client, *, task: int = TASK, json: bool) -> int:
    """Follow a task until it ends.

    Exit code 1 when it did not succeed.
    """
    return follow(client, task, as_json=json)


def follow(client: Client, task_id: int, *, as_json: bool) -> int:
    """Show a task until it ends; return 0 when it succeeded, else 1."""
    task: Task | None = None
    with terminal.bar("", "share", quiet=as_json, stream=sys.stdout) as step:
        for task in client.watch(task_id):
            if as_json:
                print(json_text.dumps(task), flush=True)
            step(task["progress"] or 0.0, 1.0, describe(task) + ("" if sys.stdout.isatty() else _tens(task)))
    if task is None:
        return 1
    succeeded = task["status"] == "succeeded"
    if not as_json:
        print_warnings(task)
        if not succeeded:
            terminal.note(f"See why: renderonline logs {task_id}")
    return 0 if succeeded else 1


@command(
    commands,
    "renderonline logs 12",
    "renderonline logs 12 --list",
    "renderonline logs 12 --attempt 1099511627790 --follow",
)
def logs(
    client: Client,
    *,
    task: int = TASK,
    attempt: int | None = option("ID", "The log of this attempt (see --list).", min=1),
    follow: bool = flag("--follow", "Go on until the attempt ends.", "-f"),
    attempts: bool = flag("--list", "List the attempts instead."),
    json: bool,
) -> Output | None:
    """Print the engine's log.

    By default that of the newest attempt that failed, else of the newest that rendered frames.
    """
    found = sorted(client.attempts(task), key=lambda item: int(item["attempt_id"]))
    if attempts:
        return listing(ATTEMPT_COLUMNS, found)
    failed = [item for item in found if item["outcome"] not in (None, "succeeded", "canceled")]
    rendered = [item for item in found if item["frames"]]  # not the film's log, which is newer and says little
    chosen = [item for item in found if item["attempt_id"] == attempt] if attempt else failed or rendered or found
    if not chosen:
        raise NotFound(f"Task {task} has no such attempt. See `renderonline logs {task} --list`.")
    _print_log(client, task, chosen[-1]["attempt_id"], follow=follow, as_json=json)
    return None


@command(commands, "renderonline explain 12")
def explain(client: Client, *, task: int = TASK) -> Output:
    """Explain why a task waits, or why it is not faster."""
    reasons = client.explain(task)
    return {"reasons": reasons}, "\n".join(map(str, reasons))


@command(
    commands,
    "renderonline download 12                  into ./task-12/",
    "renderonline download 12 -o shots/a",
    "renderonline download 12 --zip -o a.zip",
    "renderonline download 12 --frames 1-10 --only '*.mp4'",
)
def download(
    client: Client,
    *,
    task: int = TASK,
    output: Path | None = option("PATH", "Directory (with --zip: file) to write.", "--output", "-o"),
    as_zip: bool = flag("--zip", "One ZIP file with the scene and all results."),
    frames: str = option("RANGE", "Only these frames …", "--frames", "-f", default=""),
    only: list[str] | None = option("NAME", "… and files of this name (* and ? as in a shell); can be given again."),
    overwrite: bool = flag("--overwrite", "Replace files of other tasks, and those that were changed."),
    json: bool,
) -> Output:
    """Download a task's results.

    Files that are complete already are not sent again, interrupted downloads are resumed. Files that were not
    downloaded from this task are not replaced without --overwrite.
    """
    names = only or []
    if not json:
        print_warnings(client.task(task))
    if not as_zip:
        target = output or Path(f"task-{task}")
        return fetch_results(client, task, target, frames=frames, names=names, overwrite=overwrite, quiet=json)
    with terminal.bar("Downloading", "bytes", quiet=json) as step:
        target = output or Path(f"task-{task}.zip")
        path = client.download_zip(task, target, frames=frames, names=names, progress=step)
    return {"files": [str(path)]}, f"{path}  (1 file)"


def fetch_results(
    client: Client,
    task_id: int,
    directory: Path,
    *,
    frames: str = "",
    names: Sequence[str] = (),
    overwrite: bool = False,
    quiet: bool,
) -> Output:
    """Download the results, or those of these frames and names, with a progress bar."""
    matches = chooser(frames, names)

    def is_wanted(result: Item) -> bool:
        frame = result.get("of_frame") if result["frame"] is None else result["frame"]
        return matches(result["name"], frame) or matches(result.get("called", result["name"]), frame)

    with terminal.bar("Downloading", "count", quiet=quiet) as step:
        paths = client.download_results(task_id, directory, wanted=is_wanted, overwrite=overwrite, progress=step)
    return {"files": [str(path) for path in paths]}, f"{directory}  ({len(paths)} file{'s' * (len(paths) != 1)})"


def _each(task_ids: list[int], act: Callable[[int], Task], *, as_json: bool) -> Output:
    """Call `act` for each task. Where it fails for one the others are still done; then the error is raised."""
    done: list[Task] = []
    failed: list[RenderOnlineError] = []
    for task_id in dict.fromkeys(task_ids):
        try:
            done.append(act(task_id))
        except (NotFound, Conflict, InvalidRequest, LimitReached) as error:
            failed.append(error)
    output = done, "\n".join(map(describe, done))
    if failed:
        if done:
            terminal.print_answer(output, as_json=as_json)
        raise type(failed[0])("\n".join(error.message for error in failed), code=failed[0].reason_code)
    return output


def _action(name: str, action: Callable[[Client, int], Task], summary: str, example: str) -> None:
    @command(commands, example, name=name, summary=summary)
    def act(client: Client, *, task: list[int] = TASKS, json: bool) -> Output:
        return _each(task, partial(action, client), as_json=json)


_action(
    "cancel", Client.cancel, "Take tasks from the queue and stop their running chunks.", "renderonline cancel 12 13"
)
_action("resume", Client.resume, "Go on with paused tasks.", "renderonline resume 12")
_action(
    "retry", Client.retry, "Render again what failed or was canceled.\n\nFinished frames stay.", "renderonline retry 12"
)


@command(commands, "renderonline pause 12", "renderonline pause 12 13 --now")
def pause(
    client: Client,
    *,
    task: list[int] = TASKS,
    now: bool = flag("--now", "Stop running chunks, too; that is no failure."),
    json: bool,
) -> Output:
    """Start no further chunks of these tasks; running chunks go on."""
    return _each(task, partial(client.pause, now=now), as_json=json)


@command(
    commands,
    "renderonline requeue 12                   all of it",
    "renderonline requeue 12 --frames 5,17-20",
    "renderonline requeue 12 --chunk 345       (see `renderonline logs 12 --list`)",
)
def requeue(
    client: Client,
    *,
    task: list[int] = TASKS,
    frames: str = option("RANGE", "Only these frames.", default=""),
    chunk: list[int] | None = option("ID", "Only this chunk; can be given several times.", min=1),
    json: bool,
) -> Output:
    """Render tasks again, also frames that succeeded.

    Running chunks of them are stopped. Each old frame stays until the new one replaces it.
    """
    return _each(task, partial(client.requeue, frames=frames, chunks=chunk or ()), as_json=json)


@command(commands, "renderonline accept 12", "renderonline accept 12 --only frame_0007.png")
def accept(
    client: Client,
    *,
    task: int = TASK,
    only: list[str] | None = option("NAME", "Only this file; can be given several times."),
    json: bool,
) -> Output:
    """Accept a task's files as they are on the server (operators).

    Files that somebody changed since they landed are not handed out. Look at them first: this makes them the results.
    Files without a digest get one. To have frames rendered again instead: renderonline requeue.
    """
    return _each([task], partial(client.accept, names=only or ()), as_json=json)


@command(commands, "renderonline film 12", "renderonline film 12 --kind webm@25")
def film(
    client: Client,
    *,
    task: int = TASK,
    kind: str = option("FILM", "mp4 or webm, with frames per second if you like: mp4@25.", default="mp4"),
    json: bool,
) -> Output:
    """Make a film of the frames so far, and another one when the task has ended.

    It becomes a result of the task and replaces an older film.
    """
    return _each([task], partial(client.film, film=kind), as_json=json)


@command(commands, "renderonline change 12 13 --priority 80", 'renderonline change 12 --name "Walk cycle" --limit 4')
def change(
    client: Client,
    *,
    task: list[int] = TASKS,
    name: str | None = option("TEXT", "Another name."),
    priority: int | None = option("NUMBER", "0 to 100; higher goes first.", min=0, max=100),
    limit: int | None = option("NUMBER", "Chunks that run at once; 0: no limit.", min=0),
    json: bool,
) -> Output:
    """Change tasks that wait or run."""
    return _each(task, partial(client.change, name=name, priority=priority, running_limit=limit), as_json=json)


@command(commands, "renderonline delete 12 --yes")
def delete(client: Client, *, task: list[int] = TASKS, yes: bool = YES, json: bool) -> Output:
    """Delete tasks with scene and results; their running chunks are stopped."""
    confirm(f"Delete task {', '.join(map(str, task))} with the scene and all results?", agreed=yes or json)
    for task_id in task:
        client.delete(task_id)
    return {"deleted": task}, "\n".join(f"task {task_id} deleted" for task_id in task)


def describe(task: Task) -> str:
    """Return one line about a task."""
    frames = f", {task['frames_done']} of {task['frames_total']} frames" if task["frames_total"] else ""
    reason = f": {task['reason']}" if task["reason"] else ""
    return f"task {task['task_id']} {task['status']}{_warned(task)}{frames}{reason}"


def _tens(task: Task) -> str:
    """The progress of a running task in steps of ten percent, for output to a file, where there is no bar."""
    return f", {int((task['progress'] or 0.0) * 10) * 10} %" if task["status"] == "running" else ""


def print_warnings(task: Task, printed: Collection[str] = ()) -> None:
    """Print a task's warnings (R16 No false success) but those `printed` before, and why none of it can start."""
    for text in task.get("warnings", ()):
        if text not in printed:
            terminal.note(f"Warning: {text}")
    if stuck := task.get("stuck"):
        terminal.note(f"It can't start as things are: {stuck}")


def _warned(task: Task) -> str:
    count = len(task.get("warnings", ()))
    more = ", can't start" if task.get("stuck") else ""
    more += ", not checked" if task.get("unchecked") and task["status"] in ENDED else ""
    return f", {count} warning{'s' * (count > 1)}{more}" if count else more


def _status(task: Task) -> str:
    shown = "paused" if task["paused"] and task["status"] not in ENDED else task["status"]
    return shown + _warned(task)


def _show_one(task: Task) -> None:
    shown = {**task, "file_size": terminal.size(task["file_size"]), "progress": terminal.percent(task["progress"])}
    shown |= {name: terminal.when(task[name]) for name in ("queued", "started", "ended")}
    shown |= {"status": f"{task['status']}{_warned(task)}", "deletes_at": terminal.when(task.get("deletes_at"))}
    if latest := task["latest"]:
        shown["latest"] = {"name": latest["name"], **latest["facts"]}
    facts = task.get("facts") or {}
    scene = [f"{name} {value}" for first in facts.get("scenes", ())[:1] for name, value in first.items()]
    shown["scene"] = [f"version {facts.get('version', '')}", *scene] if facts else []
    names = "task_id name status reason stuck unchecked engine file_name file_size scene arguments frames frames_done"
    more = "progress latest chunks priority running_limit queued started ended deletes_at"
    terminal.print_fields(shown, [*names.split(), *more.split()])
    for text in filter(None, (*task.get("warnings", ()), _INTEGRITY.get(str(task.get("integrity"))))):
        terminal.say(f"Warning: {text}")


def _print_log(client: Client, task_id: int, attempt_id: int, *, follow: bool, as_json: bool) -> None:
    offset = 0
    while True:
        states = [item["state"] for item in client.attempts(task_id) if follow and item["attempt_id"] == attempt_id]
        text, offset = client.log(attempt_id, offset)
        if text and as_json:
            terminal.emit({"attempt_id": attempt_id, "text": text, "offset": offset})
        elif text:
            print(terminal.plain(text), end="", flush=True)
        if not set(states) - {"ended"}:
            return
        time.sleep(LOG_POLL_S)
