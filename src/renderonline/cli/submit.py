"""`renderonline submit`, and which files it sends: on the farm their names are relative to the scene's folder."""

import os
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from renderonline.cli import terminal
from renderonline.cli.task_commands import fetch_results, follow, print_warnings
from renderonline.cli.terminal import argument, command, flag, group, option, pairs
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.frames import MAX_FRAMES, parse_frames
from renderonline.farm.needs import unbaked_warnings
from renderonline.rnoclient.sdk import Client, Item
from renderonline.storage import names

if TYPE_CHECKING:
    from renderonline.rnoclient.scenes import SceneInputs

MOST_FILES = 100_000
commands = group("Submitting.")


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """The files of a submission: the scene, its name on the farm, and the other files by their names
    there. `unpack`: the file is a ZIP that contains the scene."""

    path: Path
    scene: str
    inputs: Mapping[str, Path]
    unpack: bool = False


@command(
    commands,
    "renderonline submit shot.blend --frames 1-24 --wait --download frames",
    "renderonline submit shot.blend --frames 1-250 --film mp4@25",
    "renderonline submit glass.pov --arg width=640 --arg height=360",
    "renderonline submit comp.blend --frames 1-24 --after 12 --json",
    "renderonline submit big.blend --memory 32000 --tag gpu --engine-version 5.0 --limit 4",
    "renderonline submit shot.blend --with textures --with lib/chairs.blend",
    "renderonline submit film/shots/s1.blend --folder film --strict",
)
def submit(
    client: Client,
    *,
    file: Path = argument("FILE", "The scene, or a ZIP with a scene and what it needs."),
    others: list[Path] | None = option(
        "PATH", "A file or folder that the scene needs, relative to its folder; can be given again.", "--with"
    ),
    folder: Path | None = option("DIR", "Send all of this folder, which holds the scene."),
    no_external: bool = flag("--no-external", "Don't send the files that a .blend names."),
    pack: bool = flag("--pack", "Also the files that a .blend names outside of its folder; they are listed."),
    engine: str | None = option("NAME", "The engine; guessed from the file's extension.", "--engine", "-e"),
    frames: str | None = option("RANGE", "Frames: 1-24, 1-100x5, 1,5,9 …", "--frames", "-f"),
    arg: list[str] | None = option("ID=VALUE", "An argument of the engine; may be given several times.", "--arg", "-a"),
    name: str = option("TEXT", "The task's name; the file's name if empty.", default=""),
    priority: int = option("NUMBER", "0 to 100; higher starts earlier.", default=50, min=0, max=100),
    chunk: int = option("NUMBER", "Frames per chunk; 0 leaves it to the farm.", default=0, min=0),
    after: list[int] | None = option("TASK", "Start when this task has succeeded; may be given several times.", min=1),
    engine_version: str = option("VERSION", "At least this version of the engine.", default=""),
    tag: list[str] | None = option("NAME", "Only on machines with this tag; can be given again."),
    pool: str = option("NAME", "Only on machines of this pool.", default=""),
    memory: int = option("MIB", "Memory for each chunk.", default=0, min=0),
    gpus: int = option("NUMBER", "Graphics cards for each chunk.", default=0, min=0),
    gpu_memory: int = option("MIB", "Memory on each of these cards; without --gpus, of one card.", default=0, min=0),
    sandbox: str = option("BOX", "Only where engines run in a box: bwrap, or at least landlock.", default=""),
    limit: int = option("NUMBER", "Chunks that run at once; 0: any number.", default=0, min=0),
    film: str = option("FILM", "Make a film of the frames at the end: mp4, webm, mp4@25 …", default=""),
    strict: bool = flag("--strict", "Refuse the task, or let it fail later, when a file that it needs is missing."),
    names: str = option("TEMPLATE", "Names of results that leave the farm: {scene}/{name}_{frame:04} …", default=""),
    deliver: str = option("NAME/SUB", "Copy results to a place that the farm's administrator named.", default=""),
    notify: bool = flag("--notify", "Get a mail when it ends."),
    wait: bool = flag("--wait", "Wait until it ends; exit code 1 if it failed.", "-w"),
    download: Path | None = option("DIR", "Wait, then download the results here.", "--download", "-d"),
    overwrite: bool = flag(
        "--overwrite", "With --download: replace files of other tasks, and those that were changed."
    ),
    json: bool,
) -> int:
    """Submit a scene."""
    from renderonline.engines.blender.launcher.inputs import FOLDER
    from renderonline.rnoclient.scenes import SceneInputs, needed_files

    if not file.is_file():
        raise InvalidRequest(f"{file} is not a file.")
    arguments = pairs("--arg", arg or [], "ID=VALUE")
    needs = {"engine_version": engine_version, "tags": tag or [], "pool": pool, "memory_mib": memory, "gpus": gpus}
    needs |= {"sandbox": sandbox, **({"gpu_memory_mib": gpu_memory} if gpu_memory else {})}
    with ExitStack() as stack:
        scene = needed_files(file, folder, pack=pack) if pack or not (folder or no_external) else SceneInputs()
        _print_packed(scene)
        most = len(parse_frames(frames)) if frames else MAX_FRAMES
        early = unbaked_warnings(scene.unbaked) if most > max(chunk, 1) else []
        for text in early:  # before anything is sent, so that there is time to press Ctrl-C and bake
            terminal.note(f"Warning: {text}")
        engines = client.admin.engines()
        files = _scene_files(file, [*(others or []), *scene.inside], folder, engines)
        if files.path.suffix.casefold() == ".blend" and (folder or scene.whole_paths or scene.outside):
            inputs = {**files.inputs, **scene.outside, FOLDER: _folder_file(folder or file.parent, stack)}
            files = replace(files, inputs=inputs)
        step = stack.enter_context(terminal.bar(f"Sending {file.name}", "bytes", quiet=json))
        task = client.submit(
            files.path,
            scene=files.scene,
            inputs=files.inputs,
            unpack=files.unpack,
            engine=engine or guess_engine(engines, Path(files.scene)),
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
            strict=strict,
            names=names,
            deliver=deliver,
            progress=terminal.sending(step),
        )
    number, stays = task["task_id"], wait or download is not None
    print_warnings(task, printed=early)
    hint = "" if stays else f" Follow it: renderonline watch {number}"
    terminal.print_answer((task, f"Task {number} is in the queue.{hint}"), as_json=json)
    code = follow(client, number, as_json=json) if stays else 0
    if download is not None and code == 0:
        terminal.print_answer(fetch_results(client, number, download, overwrite=overwrite, quiet=json), as_json=json)
    return code


def _scene_files(file: Path, others: list[Path], folder: Path | None, engines: list[Item]) -> SceneFiles:
    if file.suffix.casefold() != ".zip":
        return gathered(file, others, folder)
    if others or folder is not None:
        raise InvalidRequest(f"{file.name} is a ZIP: put into it what the scene needs, or unpack it.")
    scene = scene_in(file, {extension.casefold() for engine in engines for extension in engine["extensions"]})
    return SceneFiles(file, scene, {}, unpack=True)


def _print_packed(scene: "SceneInputs") -> None:
    from renderonline.engines.blender.launcher import several

    folders: dict[Path, list[str]] = {}
    for path in scene.outside.values():
        folders.setdefault(path.parent, []).append(path.name)
    for folder, inside in folders.items():  # all of them, because the scene chose them, not the user
        terminal.note(f"Sent from outside of the folder, from {folder}: {several(inside, most=20)}")
    for refused, why in scene.refused.items():
        terminal.note(f"Not sent: {refused} ({why})")


def _folder_file(folder: Path, stack: ExitStack) -> Path:
    """Write a temporary file that holds the path of the folder from which the others are sent."""
    path = Path(stack.enter_context(TemporaryDirectory(prefix="renderonline-")), "folder")
    path.write_text(str(folder.absolute()), encoding="utf-8", errors="surrogateescape")
    return path


def guess_engine(engines: list[Item], file: Path) -> str:
    """Return the name of the only enabled engine that takes files with this extension. Raises `InvalidRequest` when
    there is none, or more than one."""
    extension = file.suffix.casefold()
    takes = [item for item in engines if extension in {known.casefold() for known in item["extensions"]}]
    fitting = [str(item["name"]) for item in takes if item["is_enabled"]]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(sorted(str(item["name"]) for item in engines)) or "none"
    if fitting:
        raise InvalidRequest(f"Several engines take {extension} files ({', '.join(fitting)}); choose with --engine.")
    raise InvalidRequest(f"No engine of this farm takes {extension or 'such'} files (engines: {known}). Use --engine.")


def gathered(scene: Path, others: Iterable[Path] = (), folder: Path | None = None) -> SceneFiles:
    """Return a scene with `others`, files and folders relative to its folder, and all of `folder` if that is given.
    Names on the farm are relative to `folder`, or else to the scene's folder."""
    beside = scene.absolute().parent
    base = beside if folder is None else folder.absolute()
    wanted = [*(beside / other for other in others), *([] if folder is None else [base])]
    # The bound also ends a walk whose links lead in a circle.
    paths = islice((path for place in wanted for path in _files(place)), MOST_FILES + 1)
    found = {_name(scene.absolute(), base): scene, **{_name(path, base): path for path in paths}}
    if len(found) > MOST_FILES:
        raise InvalidRequest(f"These are too many files; a task has at most {MOST_FILES}.")
    main = next(iter(found))
    return SceneFiles(found.pop(main), main, found)


def scene_in(archive: Path, extensions: Collection[str]) -> str:
    """Return the name of the scene in a ZIP: the file with one of the `extensions` (in lower case) that lies nearest to
    the top. Raises `InvalidRequest` when there is none, or more than one."""
    try:
        with zipfile.ZipFile(archive) as found:
            inside = [name for name, _ in names.files_in_zip(found)]
    except (zipfile.BadZipFile, OSError) as error:
        raise InvalidRequest(f"{archive} can't be unpacked: {error}.") from None
    fitting = [name for name in inside if PurePosixPath(name).suffix.casefold() in extensions]
    top = min((name.count("/") for name in fitting), default=0)
    scenes = [name for name in fitting if name.count("/") == top]
    if len(scenes) != 1:
        listed = ", ".join(scenes[:5]) or "none"
        raise InvalidRequest(f"Which file of {archive.name} is the scene ({listed})? Unpack it and use --folder.")
    return scenes[0]


def _name(path: Path, folder: Path) -> str:
    name = os.path.relpath(path, folder).replace(os.sep, "/")
    if name.startswith("../"):
        raise InvalidRequest(f"{path} is outside of {folder}. Use --folder with a folder that contains both.")
    return name


def _files(path: Path) -> Iterator[Path]:
    """The file, or all files below a folder; what begins with a dot is left out."""
    if not path.is_dir():
        if not path.is_file():
            raise InvalidRequest(f"{path} does not exist.")
        yield path
    for folder, folders, inside in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(inside) if not name.startswith("."))
