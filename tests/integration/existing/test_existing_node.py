"""Existing nodes under our RenderAPI: every way in which one can misbehave ends every task right
(R7 Existing nodes)."""

import json

import pytest

from tests.support.existing_farm import wait_until
from tests.support.existing_rig import Rig
from tests.support.golden import send

pytestmark = pytest.mark.sqlite


def test_a_task_is_rendered_by_an_existing_node(rig: Rig) -> None:
    node = rig.add_node(7)
    task_id = rig.running_task(note="two words")
    rig.release()
    rig.assert_ended_well(task_id)

    start = node.starts[0]
    assert start.body["engineid"] == "stub"
    assert 2**40 <= start.body["taskid"] < 2**53  # the attempt's id, never the task's (R7.1 Attempt id on the wire)
    scene = str(rig.farm.directory_of(task_id) / "a.scene")
    argv = ["--record", str(rig.record), "--until", str(rig.gate), "--exit", "0", "--note", "two words", scene]
    assert rig.runs[0]["argv"] == argv  # without the template's leading program name (R7.5 Program name)
    shown = rig.client.info().json()["Tasks"][0]
    assert shown["Task"]["MachineId"] == 7
    assert shown["Render"]["Arguments"].startswith("stub --record")


def test_tasks_follow_each_other_on_one_node(rig: Rig) -> None:
    node = rig.add_node(1)
    rig.release()
    rig.farm.start()
    task_ids = [rig.submit() for _ in range(3)]
    for task_id in task_ids:
        assert rig.farm.wait_for_end(task_id)["is_success"] == 1
    assert len(rig.runs) == 3
    assert len({start.body["taskid"] for start in node.starts}) == len(node.starts) == 3


def test_a_failing_task_is_tried_three_times_and_then_ends(rig: Rig) -> None:
    rig.add_node(1)
    rig.release()
    rig.farm.start({"RENDERAPI_RETRY_BASE_S": "0.1"})
    task_id = rig.submit(code=3)
    row = rig.farm.wait_for_end(task_id, 90)
    assert (row["is_running"], row["is_success"]) == (0, 0)
    assert len(rig.runs) == 3


def test_a_lost_reply_to_start_does_not_start_twice(rig: Rig) -> None:
    node = rig.add_node(1)
    node.faults.lost_start_replies = 1
    task_id = rig.running_task()
    rig.release()
    rig.assert_ended_well(task_id)


def test_a_start_that_never_arrived_is_sent_again(rig: Rig) -> None:
    node = rig.add_node(1)
    node.faults.lost_starts = 1
    rig.release()
    rig.farm.start()
    rig.assert_ended_well(rig.submit())
    assert len(node.starts) == 2


def test_a_reply_to_start_that_is_five_seconds_late_does_not_start_twice(rig: Rig) -> None:
    node = rig.add_node(1)
    rig.farm.start(quickly=False)
    wait_until(lambda: node.requests, "first look at the node")
    node.faults.late_s = 5
    task_id = rig.submit()
    rig.wait_for_run()
    rig.release()
    wait_until(lambda: not node.is_running, "end of the process")
    node.faults.late_s = 0
    rig.assert_ended_well(task_id)


def test_a_node_that_answers_five_seconds_late_for_a_while_keeps_its_task(rig: Rig) -> None:
    node = rig.add_node(1)
    rig.farm.start(quickly=False)
    task_id = rig.submit()
    rig.wait_for_run()
    looks = len(node.requests)
    node.faults.late_s = 5
    rig.release()
    wait_until(lambda: len(node.requests) >= looks + 3, "third look, after two whose answers came too late")
    node.faults.late_s = 0
    rig.assert_ended_well(task_id)


def test_a_status_from_before_the_start_says_nothing_about_the_start(rig: Rig) -> None:
    node = rig.add_node(1)
    rig.release()
    rig.farm.start(quickly=False)
    assert rig.farm.wait_for_end(rig.submit())["is_success"] == 1
    node.faults.stale_s = 1.5
    rig.gate.unlink()
    task_id = rig.submit()
    rig.wait_for_run(2)
    begun = node.requests.index(node.starts[-1])
    # It is looked at once at a time: at the third look what was true before the start has arrived.
    wait_until(lambda: [one.path for one in node.requests[begun:]].count("/hpc/status") >= 3, "third look")
    assert rig.farm.in_queue(task_id)
    rig.release()
    rig.assert_ended_well(task_id, started=2)


def test_a_node_that_restarts_loses_its_task_and_gets_it_again(rig: Rig) -> None:
    node = rig.add_node(1)
    task_id = rig.running_task()
    node.restart()
    rig.wait_for_run(2, 60)
    rig.release()
    rig.assert_ended_well(task_id, started=2)
    first, second = node.starts[0].body["taskid"], node.starts[-1].body["taskid"]
    assert first != second


def test_a_task_that_was_lost_elsewhere_goes_to_another_node_only_when_the_first_is_idle(rig: Rig) -> None:
    """R7.4 Whole tasks: its renderer may still write."""
    rig.add_node(1)
    rig.farm.start()
    task_id = rig.submit()
    rig.wait_for_run()
    other = rig.add_node(2)
    rig.farm.kill()
    rig.farm.start()
    wait_until(lambda: other.requests, "first look at the second node")
    assert not other.starts
    rig.release()
    rig.assert_ended_well(task_id)
    assert not other.starts


@pytest.mark.parametrize("other_task", [7, 2**41 + 7], ids=["somebody_elses", "like_one_of_ours"])
def test_a_node_that_reports_another_task_completes_nothing(rig: Rig, other_task: int) -> None:
    """C4 Known faults, fault 8."""
    node = rig.add_node(1)
    task_id = rig.running_task()
    node.faults.claims_success_of = other_task
    looks = len(node.requests)
    wait_until(lambda: len(node.requests) >= looks + 4, "four looks at the node")
    assert rig.farm.in_queue(task_id)
    assert rig.farm.row(task_id)["is_success"] == 0
    node.faults.claims_success_of = None
    rig.release()
    row = rig.farm.wait_for_end(task_id)
    assert row["is_success"] == 1
    assert node.task_id == node.starts[-1].body["taskid"]


def test_a_node_that_somebody_else_has_just_taken_takes_nothing_and_nothing_fails(rig: Rig) -> None:
    taken = rig.add_node(1)
    rig.farm.start(quickly=False)
    wait_until(lambda: taken.requests, "first look at the node")
    start_elsewhere(taken.port, 5, "--sleep 8")
    task_id = rig.submit()  # RenderAPI's last look said that the node is idle
    wait_until(lambda: taken.starts[1:], "refused start")
    rig.release()
    rig.assert_ended_well(task_id)
    assert len(taken.starts) < 12  # it is not asked again and again
    assert not taken.stops


def test_a_node_that_somebody_else_has_does_not_hold_up_the_others(rig: Rig) -> None:
    taken, free = rig.add_node(1), rig.add_node(2)
    rig.release()
    rig.farm.start()
    wait_until(lambda: taken.requests and free.requests, "first look at the nodes")
    start_elsewhere(taken.port, 5, "--sleep 60")
    for _ in range(3):
        assert rig.farm.wait_for_end(rig.submit())["is_success"] == 1
    assert len(rig.runs) == len(free.starts) == 3
    assert taken.is_running


def test_a_node_that_contradicts_itself_does_not_hold_up_the_others(rig: Rig) -> None:
    confused, free = rig.add_node(1), rig.add_node(2)
    confused.faults.refuses_start = "There already is an active render!"  # but status says that it is idle
    rig.release()
    rig.farm.start(quickly=False)
    for _ in range(3):
        assert rig.farm.wait_for_end(rig.submit())["is_success"] == 1
    assert len(rig.runs) == len(free.starts) == 3
    assert len(confused.requests) < 100


def start_elsewhere(port: int, task_id: int, arguments: str) -> None:
    """What another RenderAPI does."""
    body = json.dumps({"EngineId": "stub", "TaskId": task_id, "Arguments": arguments}).encode()
    answer = send(f"http://127.0.0.1:{port}", "POST", "/hpc/start", {"Content-Type": "application/json"}, body)
    assert answer.status == 200, answer.body


def test_a_process_that_takes_three_seconds_to_exist_is_started_once(rig: Rig) -> None:
    """The node has rendered nothing before: until the process exists its status says that there is no task."""
    node = rig.add_node(1)
    node.faults.before_process_s = 3
    rig.release()
    rig.farm.start(quickly=False)
    rig.assert_ended_well(rig.submit())
    assert len(node.starts) == 1


def test_a_node_that_is_still_ending_the_last_process_is_asked_again(rig: Rig) -> None:
    node = rig.add_node(1)
    rig.release()
    rig.farm.start()
    assert rig.farm.wait_for_end(rig.submit())["is_success"] == 1
    node.faults.refuses_start = "There already is an active render!"
    task_id = rig.submit()
    wait_until(lambda: node.starts[1:], "refused start")
    node.faults.refuses_start = ""
    rig.assert_ended_well(task_id, started=2, timeout_s=10)


@pytest.mark.parametrize("seconds", [0.5, 1.5])
def test_the_window_before_the_process_exists_is_no_failure(rig: Rig, seconds: float) -> None:
    node = rig.add_node(1)
    rig.release()
    rig.farm.start(quickly=False)
    assert rig.farm.wait_for_end(rig.submit())["is_success"] == 1
    node.faults.before_process_s = seconds
    rig.assert_ended_well(rig.submit(), started=2)


def test_the_window_between_exit_time_and_success_is_no_failure(rig: Rig) -> None:
    node = rig.add_node(1)
    node.faults.before_success_s = 0.9
    rig.release()
    rig.farm.start(quickly=False)
    for count in range(1, 4):
        rig.assert_ended_well(rig.submit(), started=count)


def test_a_node_that_answers_nonsense_is_left_alone_until_it_makes_sense(rig: Rig) -> None:
    node = rig.add_node(1)
    node.faults.garbage = True
    rig.release()
    rig.farm.start()
    task_id = rig.submit()
    wait_until(lambda: len(node.requests) >= 2, "two looks at the node")
    assert not node.starts
    node.faults.garbage = False
    rig.assert_ended_well(task_id)


def test_dequeuing_stops_the_task_on_its_node(rig: Rig) -> None:
    node = rig.add_node(1)
    rig.farm.start()
    task_id = rig.submit()
    rig.wait_for_run()
    assert rig.client.dequeue(task_id).json()["IsRemoved"] is True
    wait_until(lambda: not node.is_running, "end of the process")
    assert node.stops[0].body["taskid"] == node.starts[0].body["taskid"]
    row = rig.farm.wait_for_end(task_id)
    assert (row["is_running"], row["is_success"]) == (0, 0)
    rig.release()
    next_id = rig.submit()
    rig.assert_ended_well(next_id, started=2)


def test_deleting_stops_the_task_and_leaves_nothing(rig: Rig) -> None:
    node = rig.add_node(1)
    rig.farm.start()
    task_id = rig.submit()
    rig.wait_for_run()
    directory = rig.farm.directory_of(task_id)
    assert rig.client.delete(task_id).json()["IsDeleted"] is True
    wait_until(lambda: not node.is_running, "end of the process")
    wait_until(lambda: not directory.exists(), "end of the directory")
    assert rig.farm.row(task_id) == {}
    assert not rig.farm.in_queue(task_id)
    assert rig.farm.sql("SELECT 1 FROM renders") == []


def test_a_task_survives_the_death_of_renderapi(rig: Rig) -> None:
    node = rig.add_node(1)
    rig.farm.start()
    task_id = rig.submit()
    rig.wait_for_run()
    rig.farm.kill()
    rig.release()
    wait_until(lambda: not node.is_running, "end of the process")
    rig.farm.start()
    rig.assert_ended_well(task_id)


def test_a_machine_added_by_hand_is_noticed(rig: Rig) -> None:
    rig.release()
    rig.farm.start()
    task_id = rig.submit()
    rig.add_node(1)
    rig.assert_ended_well(task_id, timeout_s=15)
