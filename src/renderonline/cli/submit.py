"""`renderonline submit`."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from renderonline.cli import show
from renderonline.cli.commands import Json, argument, command, flag, group, option, pairs
from renderonline.cli.progress import bar, sending
from renderonline.cli.scene_files import SceneFiles, gathered, unpacked
from renderonline.cli.tasks import fetch_results, follow
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.tasks import missing_told
from renderonline.rnoclient.scenes import external_files
from renderonline.rnoclient.sdk import Client, Item

commands = group("Submitting.")
Arguments = Annotated[
    list[str] | None, option("ID=VALUE", "An argument of the engine; may be given several times.", "--arg", "-a")
]


@command(
    commands,
    "renderonline submit shot.blend --frames 1-24 --wait --download frames",
    "renderonline submit shot.blend --frames 1-250 --film mp4@25",
    "renderonline submit glass.pov --arg width=640 --arg height=360",
    "renderonline submit comp.blend --frames 1-24 --after 12 --json",
    "renderonline submit big.blend --memory 32000 --tag gpu --engine-version 5.0 --limit 4",
    "renderonline submit shot.blend --with textures --with lib/chairs.blend",
    "renderonline submit film/shots/s1.blend --folder film",
)
def submit(
    client: Client,
    *,
    file: Annotated[Path, argument("FILE", "The scene, or a ZIP with a scene and what it needs.")],
    others: Annotated[
        list[Path] | None,
        option("PATH", "A file or folder that the scene needs, seen from its folder; can be given again.", "--with"),
    ] = None,
    folder: Annotated[Path | None, option("DIR", "Send all of this folder, which holds the scene.")] = None,
    no_external: Annotated[bool, flag("--no-external", "Not the files that a .blend names.")] = False,
    engine: Annotated[
        str | None, option("NAME", "The engine; guessed from the file's extension.", "--engine", "-e")
    ] = None,
    frames: Annotated[str | None, option("RANGE", "Frames: 1-24, 1-100x5, 1,5,9 …", "--frames", "-f")] = None,
    arg: Arguments = None,
    name: Annotated[str, option("TEXT", "What the task is called; the file's name if empty.")] = "",
    priority: Annotated[int, option("NUMBER", "0 to 100; higher starts earlier.", min=0, max=100)] = 50,
    chunk: Annotated[int, option("NUMBER", "Frames per chunk; 0 leaves it to the farm.", min=0)] = 0,
    after: Annotated[
        list[int] | None, option("TASK", "Start when this task has succeeded; may be given several times.", min=1)
    ] = None,
    engine_version: Annotated[str, option("VERSION", "At least this version of the engine.")] = "",
    tag: Annotated[list[str] | None, option("NAME", "Only on machines with this tag; can be given again.")] = None,
    pool: Annotated[str, option("NAME", "Only on machines of this pool.")] = "",
    memory: Annotated[int, option("MIB", "So much memory for each chunk.", min=0)] = 0,
    gpus: Annotated[int, option("NUMBER", "So many graphics cards for each chunk.", min=0)] = 0,
    limit: Annotated[int, option("NUMBER", "So many chunks at once; 0: any number.", min=0)] = 0,
    film: Annotated[str, option("FILM", "Make a film of the frames at the end: mp4, webm, mp4@25 …")] = "",
    notify: Annotated[bool, flag("--notify", "Have a mail sent to you when it ends.")] = False,
    wait: Annotated[bool, flag("--wait", "Wait until it ends; exit code 1 if it failed.", "-w")] = False,
    download: Annotated[Path | None, option("DIR", "Wait, then download the results here.", "--download", "-d")] = None,
    json: Json,
) -> int:
    """Submit a scene."""
    if not file.is_file():
        raise InvalidRequest(f"{file} is no file.")
    arguments = pairs("--arg", arg or [], "ID=VALUE")
    needs = {"engine_version": engine_version, "tags": tag or [], "pool": pool, "memory_mib": memory, "gpus": gpus}
    with ExitStack() as stack:
        found = external_files(file) if folder is None and not no_external else []
        sent = _sent(client, file, [*(others or []), *found], folder, stack)
        chosen = engine or guess_engine(client.admin.engines(), sent.path)
        step = stack.enter_context(bar(f"Sending {file.name}", "bytes", quiet=json))
        task = client.submit(
            sent.path,
            scene=sent.scene,
            inputs=sent.inputs,
            engine=chosen,
            arguments=arguments,
            frames=frames,
            name=name,
            priority=priority,
            chunk_size=chunk,
            waits_for=after or [],
            notify=notify,
            needs=needs,
            running_limit=limit,
            film=film,
            progress=sending(step),
        )
    number, stays = task["task_id"], wait or download is not None
    for text in (*task.get("facts", {}).get("warnings", ()), *missing_told(task.get("missing_inputs", ()))):
        show.note(f"Warning: {text}")
    follow_it = "" if stays else f" Follow it: renderonline watch {number}"
    show.answer((task, f"Task {number} is in the queue.{follow_it}"), as_json=json)
    code = follow(client, number, as_json=json) if stays else 0
    if download is not None and code == 0:
        show.answer(fetch_results(client, number, download, quiet=json), as_json=json)
    return code


def _sent(client: Client, file: Path, others: list[Path], folder: Path | None, stack: ExitStack) -> SceneFiles:
    if file.suffix.casefold() == ".zip":
        if others or folder is not None:
            raise InvalidRequest(f"{file.name} is a ZIP: put into it what the scene needs, or unpack it.")
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="renderonline-")))
        engines = client.admin.engines()
        return unpacked(file, directory, {one.casefold() for engine in engines for one in engine["extensions"]})
    return gathered(file, others, folder)


def guess_engine(engines: list[Item], file: Path) -> str:
    """The name of the one engine that takes files with this extension."""
    extension = file.suffix.casefold()
    takes = [item for item in engines if extension in {known.casefold() for known in item["extensions"]}]
    fitting = [str(item["name"]) for item in takes if item["is_enabled"]]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(sorted(str(item["name"]) for item in engines)) or "none"
    if fitting:
        raise InvalidRequest(f"Several engines take {extension} files ({', '.join(fitting)}); choose with --engine.")
    raise InvalidRequest(f"No engine of this farm takes {extension or 'such'} files (engines: {known}). Use --engine.")
