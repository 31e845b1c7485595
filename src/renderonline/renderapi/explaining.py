"""Why a task is where it is, in plain words: the plan's twin, which says what the plan does not see in it (R9)."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from renderonline.database.work_control import Story
from renderonline.database.work_loading import QueuedTask
from renderonline.farm.ready import Signature
from renderonline.farm.scheduling import Allowance
from renderonline.farm.tasks import TaskStatus, missing_told
from renderonline.renderapi.machines import Machine
from renderonline.renderapi.shared import Shared

_ENDED: Final = {
    TaskStatus.SUCCEEDED: "It succeeded.",
    TaskStatus.FAILED: "It failed. Try it again with: renderonline retry.",
    TaskStatus.CANCELED: "It was canceled. Try it again with: renderonline retry.",
}
_BUSY: Final = "it is busy"
_NAMED: Final = 5
"""So many machines are named at most for one reason."""


def reasons(story: Story, shared: Shared) -> Iterable[str]:
    """What there is to say of a task, the most important first."""
    state = story.state
    yield from missing_told(story.missing)
    if state.ended:
        yield _ENDED[state.status]
        if state.status is TaskStatus.FAILED:
            yield from dict.fromkeys(filter(None, (state.reason, *story.reasons)))
        return
    if state.counters.live:
        names = {_machine_name(shared, one.machine_id) for one in shared.memory.attempts_of(state.task_id)}
        yield f"{state.counters.live} of its parts are being rendered on {', '.join(sorted(names)) or 'a machine'}."
    if state.counters.waiting:
        yield from _why_waiting(story, shared)
    for reason in story.reasons:
        yield f"A part failed before: {reason}."


def _why_waiting(story: Story, shared: Shared) -> Iterable[str]:
    memory, task_id = shared.memory, story.state.task_id
    task = memory.tasks.get(task_id)
    if story.state.paused:
        yield "It is paused; resume it to go on."
    elif story.blocked_by:
        yield f"It waits for task {', '.join(map(str, story.blocked_by))} to succeed."
    elif held := memory.held_machines(task_id):
        names = ", ".join(_machine_name(shared, machine_id) for machine_id in held)
        yield f"Machine {names} was lost and may still write; it must answer first. Retry, if it is really off."
    elif (due := memory.next_try(task_id)) is not None:
        yield f"A part is tried again in {max(0.0, due - shared.clock.monotonic()):.0f} s."
    if task is not None and task.may_start:
        yield from _why_not_now(shared, task)


def _why_not_now(shared: Shared, task: QueuedTask) -> Iterable[str]:
    users = shared.machines.policy.users
    limit, running = users.get(task.user_id, Allowance()).running_limit, len(shared.memory.attempts_of(task.task_id))
    if task.running_limit and running >= task.running_limit:
        yield f"So many of its parts may run at once: {task.running_limit}. Allow more: renderonline change --limit."
    elif limit and shared.memory.usage.users.get(task.user_id, 0) >= limit:
        yield f"{limit} parts of its user's tasks are being rendered; the subscription allows no more at once."
    elif not any(machine.reachable for machine in shared.machines):
        yield "No machine is connected. Add one: renderonline machine invite."
    else:
        yield from _why_no_machine(shared, task)


def _why_no_machine(shared: Shared, task: QueuedTask) -> Iterable[str]:
    signatures = shared.memory.index.signatures_of(task.task_id) or (task.signature(),)
    told: dict[str, list[str]] = defaultdict(list)
    for machine in shared.machines:
        told[min(_hindrance(shared, machine, one) for one in signatures)].append(machine.name)
    told.pop("", None)
    if told.keys() == {f"no engine {task.engine}"}:
        yield f"No machine has the engine {task.engine}."
        return
    if busy := told.pop(_BUSY, None):
        yield f"All machines that can take it are busy ({len(busy)}); it is in the queue."
    for reason, names in sorted(told.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
        yield f"Not on {', '.join(names[:_NAMED])}{more}: {reason}."


def _hindrance(shared: Shared, machine: Machine, signature: Signature) -> str:
    """What keeps a machine from taking a chunk now; "" when nothing does."""
    ability, policy = machine.ability, shared.machines.policy
    kept_for = shared.memory.reserved.get(machine.machine_id, signature)
    gpus, memory_mib = machine.room.missing(signature.needs)
    hindrances = {
        ability.lacks(signature.engine, signature.needs): True,
        machine.refuses: True,
        "it takes whole tasks only, and this one is cut": not policy.fits(ability, signature),
        "a part failed there, and other machines can take it": not policy.takes(ability, signature),
        _BUSY: not machine.free,
        f"what runs there leaves {memory_mib} MiB of memory and {gpus} graphics cards too little": memory_mib or gpus,
        "it is kept for a larger task that has waited for long": kept_for != signature,
    }
    return next((reason for reason, holds in hindrances.items() if reason and holds), "")


def _machine_name(shared: Shared, machine_id: int) -> str:
    machine = shared.machines.get(machine_id)
    return machine.name if machine is not None else f"machine {machine_id}"
