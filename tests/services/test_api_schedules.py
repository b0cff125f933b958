"""Schedules over HTTP: what is taken and refused, what is answered, and that reads see writes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventq.events.errors import PreconditionFailed, ScheduleNotFound
from eventq.events.handle import handle_any
from eventq.events.schedule import SCHEDULES, TICK, CreateSchedule
from eventq.events.schedule_events import ScheduleSpec
from eventq.events.subjects import TIMERS, timer_subject
from eventq.events.task_events import Submitted
from eventq.events.timers import Hint
from eventq.services.client import Client
from eventq.services.schedules import TickMaker, tick_hint
from tests.services.backend import Backend
from tests.services.command import Done, eventq

DAILY = {"cron": "30 2 * * *", "time_zone": "Europe/Berlin", "task_name": "resize", "task_kwargs": {"width": 10}}


async def created(backend: Backend, **changes: Any) -> dict[str, Any]:
    status, answer = await backend.post("/schedules", {**DAILY, **changes})
    assert status == 201, answer
    return dict(answer)


async def call(backend: Backend, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
    async with backend.client.request(method, f"/api/v1{path}", json=body, **options) as answer:
        return answer.status, await answer.json() if answer.content_length else None


async def timers_of(backend: Backend, schedule_id: str) -> int:
    info = await backend.broker.js.stream_info(
        TIMERS, subjects_filter=timer_subject(Hint("schedules", schedule_id, TICK).tokens)
    )
    return sum((info.state.subjects or {}).values())


async def test_a_created_schedule_is_complete_and_is_read_as_it_was_answered(backend: Backend) -> None:
    async with backend.client.post("/api/v1/schedules", json=DAILY) as answer:
        body = await answer.json()
        assert (answer.status, answer.headers["ETag"]) == (201, '"1"')
        assert answer.headers["Location"] == f"/api/v1/schedules/{body['schedule_id']}"
    assert (body["status"], body["explain"], body["version"]) == ("ACTIVE", "At 02:30 every day", 1)
    assert (body["priority"], body["queue_name"], body["max_retries"], body["timeout_seconds"]) == (5, "default", 2, 60.0)
    assert body["upcoming"][0] == body["next_at"]
    assert len(set(body["upcoming"])) == 5
    assert await backend.get(f"/schedules/{body['schedule_id']}") == (200, body)
    assert await timers_of(backend, body["schedule_id"]) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cron": "0 0 30 2 *"}, "/cron"),
        ({"cron": "* * * * * *"}, "/cron"),
        ({"cron": "61 * * * *"}, "/cron"),
        ({"cron": "*" * 300}, "/cron"),
        ({"time_zone": "Mars/Olympus"}, "/time_zone"),
        ({"time_zone": "localtime"}, "/time_zone"),
        ({"task_name": "unknown"}, "task_name"),
        ({"task_kwargs": {"width": 0}}, "/task_kwargs/width"),
        ({"schedule_id": "a.b"}, "/schedule_id"),
        ({"ends_at": "2020-01-01T00:00:00Z"}, "/cron"),
        ({"starts_at": "2031-01-01T00:00:00Z", "ends_at": "2030-01-01T00:00:00Z"}, "/ends_at"),
        ({"catch_up": "all", "overlap": "skip"}, "/overlap"),
        ({"catch_up": "some"}, "/catch_up"),
        ({"tags": ["x"] * 21}, "/tags"),
        ({"unknown": 1}, "/unknown"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name_and_stores_nothing(
    backend: Backend, changes: dict[str, Any], field: str
) -> None:
    before = await backend.last_position()
    status, answer = await backend.post("/schedules", {**DAILY, **changes})
    assert (status, answer["field"]) == (400, field), answer
    assert await backend.last_position() == before


async def test_a_wrong_count_of_fields_is_told_with_the_right_one_and_how_to_write_them(backend: Backend) -> None:
    _, answer = await backend.post("/schedules", {**DAILY, "cron": "* * * * * *"})
    assert (answer["field"], answer["limit"], answer["found"]) == ("/cron", 5, 6)
    assert answer["hint"].startswith("minute hour day-of-month month day-of-week")


async def test_an_impossible_date_is_refused_in_the_words_of_the_parser(backend: Backend) -> None:
    _, answer = await backend.post("/schedules", {**DAILY, "cron": "0 0 30 2 *"})
    assert "Bad day-of-month" in answer["detail"]


async def test_a_schedule_may_begin_where_the_calendar_ends(backend: Backend) -> None:
    """Given the last years that a date can name, when schedules begin in them, then they are due as often as there are dates,
    and the list of all can be read."""
    last = await created(backend, cron="0 0 1 1 *", time_zone="UTC", starts_at="9998-12-31T00:00:00Z")
    assert last["upcoming"] == ["9999-01-01T00:00:00Z"]
    status, refused = await backend.post("/schedules", {**DAILY, "starts_at": "9998-12-31T23:59:59-23:59", "cron": "0 0 1 1 *"})
    assert (status, refused["field"]) == (400, "/cron")
    assert [each["schedule_id"] for each in (await backend.get("/schedules"))[1]["schedules"]] == [last["schedule_id"]]


async def test_a_chosen_id_is_taken_for_ever(backend: Backend) -> None:
    await created(backend, schedule_id="nightly")
    status, answer = await backend.post("/schedules", {**DAILY, "schedule_id": "nightly"})
    assert (status, answer["code"]) == (409, "ILLEGAL_TRANSITION")
    assert (await call(backend, "DELETE", "/schedules/nightly"))[0] == 204
    assert (await backend.post("/schedules", {**DAILY, "schedule_id": "nightly"}))[0] == 409


async def test_an_update_changes_what_it_names_and_reckons_the_next_time_anew(backend: Backend) -> None:
    before = await created(backend, schedule_id="nightly", tags=["a"], key="ada")
    headers = {"If-Match": '"1"'}
    status, after = await call(backend, "PATCH", "/schedules/nightly", {"cron": "0 * * * *", "priority": 9}, headers=headers)
    assert (status, after["version"]) == (200, 2)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"cron", "explain", "priority", "next_at", "upcoming", "updated_at", "version"}
    assert await backend.get("/schedules/nightly") == (200, after)
    status, refused = await call(backend, "PATCH", "/schedules/nightly", {"priority": 1}, headers=headers)
    assert (status, refused["code"], refused["found"]) == (412, "PRECONDITION_FAILED", 2)
    assert (await call(backend, "DELETE", "/schedules/nightly", headers=headers))[0] == 412


async def test_an_update_of_something_else_loses_no_tick_that_is_due(backend: Backend) -> None:
    """Given a schedule whose time has come, when its tags are changed before a scheduler dealt with it, then it is due."""
    task = Submitted(task_name="resize", kwargs={"width": 10}, pool="cpu", queue="default", priority=5, max_retries=0)
    due = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=3)
    command = CreateSchedule(ScheduleSpec(cron="* * * * *", task=task, catch_up="all"), due, False, "ada")
    await handle_any(backend.log, SCHEDULES, "often", command, source="test")
    status, after = await call(backend, "PATCH", "/schedules/often", {"tags": ["a"], "cron": "* * * * *"})
    assert (status, datetime.fromisoformat(after["next_at"])) == (200, due)
    assert await TickMaker(backend.log, backend.api.submitter, source="test").tick(tick_hint("often"))
    where = {"schedule_id": "often", "min_position": await backend.last_position()}
    _, made = await backend.get("/tasks", params=where)
    assert made["total"] >= 4
    assert all(each["tags"] == ["a"] for each in made["tasks"])


async def test_an_update_to_another_task_takes_that_tasks_declaration(backend: Backend) -> None:
    await created(backend, schedule_id="nightly", priority=2)
    status, refused = await call(backend, "PATCH", "/schedules/nightly", {"task_name": "echo"})
    assert (status, refused["field"]) == (400, "/task_kwargs/width")
    change = {"task_name": "echo", "task_kwargs": {"message": 1}}
    status, after = await call(backend, "PATCH", "/schedules/nightly", change)
    assert (status, after["task_name"], after["priority"], after["task_kwargs"]) == (200, "echo", 7, {"message": 1})


async def test_null_takes_an_end_away(backend: Backend) -> None:
    ends_at = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    await created(backend, schedule_id="nightly", ends_at=ends_at)
    status, after = await call(backend, "PATCH", "/schedules/nightly", {"ends_at": None})
    assert (status, after["ends_at"]) == (200, None)


async def test_large_arguments_are_kept_by_reference_and_outlive_an_update(backend: Backend) -> None:
    before = await created(backend, schedule_id="big", task_name="echo", task_kwargs={"message": "x" * 70_000})
    assert before["input"] is not None
    assert before["task_kwargs"] is None
    _, after = await call(backend, "PATCH", "/schedules/big", {"priority": 1})
    assert after["input"] == before["input"]
    status, after = await call(backend, "PATCH", "/schedules/big", {"task_args": []})
    assert (status, after["input"]) == (200, before["input"]), "the other arguments stay"
    status, refused = await call(backend, "PATCH", "/schedules/big", {"task_name": "resize"})
    assert (status, refused["field"]) == (400, "/task_kwargs/width")


async def test_pause_resume_and_delete_answer_what_came_of_them(backend: Backend) -> None:
    await created(backend, schedule_id="nightly")
    for path, wanted, version in (("pause", "PAUSED", 2), ("pause", "PAUSED", 2), ("resume", "ACTIVE", 3)):
        status, answer = await backend.post(f"/schedules/nightly/{path}")
        assert (status, answer["status"], answer["version"]) == (200, wanted, version)
        assert (await backend.get("/schedules/nightly"))[1]["status"] == wanted
    assert await call(backend, "DELETE", "/schedules/nightly") == (204, None)
    assert await call(backend, "DELETE", "/schedules/nightly") == (204, None)
    for path in ("pause", "resume", "trigger"):
        assert (await backend.post(f"/schedules/nightly/{path}"))[0] == 409
    _, gone = await backend.get("/schedules/nightly")
    assert (gone["status"], gone["next_at"], gone["upcoming"]) == ("DELETED", None, [])


async def test_a_list_leaves_deleted_ones_out_unless_asked(backend: Backend) -> None:
    await created(backend, schedule_id="one")
    await created(backend, schedule_id="two", enabled=False)
    await created(backend, schedule_id="three", task_name="echo", task_kwargs={})
    await call(backend, "DELETE", "/schedules/one")

    async def listed(**params: Any) -> list[str]:
        _, answer = await backend.get("/schedules", params=params)
        assert answer["total"] >= len(answer["schedules"])
        return [schedule["schedule_id"] for schedule in answer["schedules"]]

    assert await listed() == ["three", "two"]
    assert await listed(status="DELETED") == ["one"]
    assert await listed(status="PAUSED") == ["two"]
    assert await listed(task_name="echo") == ["three"]
    assert await listed(limit=1, offset=1) == ["two"]


async def test_a_trigger_makes_the_task_at_once_and_once_for_a_key(backend: Backend) -> None:
    before = await created(backend, schedule_id="nightly", key="ada", tags=["a"], queue_timeout_seconds=60)
    status, one = await backend.post("/schedules/nightly/trigger", headers={"Idempotency-Key": "k 1"})
    assert status == 201
    assert (await backend.post("/schedules/nightly/trigger", headers={"Idempotency-Key": "k 1"}))[1] == one
    _, other = await backend.post("/schedules/nightly/trigger")
    assert (await backend.post("/schedules/nightly/trigger", headers={"Idempotency-Key": "k 1"}))[1]["task_id"] == one[
        "task_id"
    ]
    assert one["task_id"] != other["task_id"]
    _, task = await backend.get(f"/tasks/{one['task_id']}")
    assert (task["status"], task["task_kwargs"]) == ("PENDING", {"width": 10})
    _, after = await backend.get("/schedules/nightly")
    assert (after["times_triggered"], after["next_at"], after["last_at"]) == (2, before["next_at"], None)
    stored = await backend.log.at("tasks", one["task_id"], 1)
    assert stored is not None
    assert isinstance(stored.event.data, Submitted)
    assert (stored.event.data.schedule_id, stored.event.data.key) == ("nightly", "ada")
    long_key = {"Idempotency-Key": "x" * 256}
    assert (await backend.post("/schedules/nightly/trigger", headers=long_key))[0] == 400


async def test_what_is_not_there_is_said_to_be_not_there(backend: Backend) -> None:
    for path in ("/pause", "/resume", "/trigger"):
        assert (await backend.post(f"/schedules/none{path}"))[1]["code"] == "SCHEDULE_NOT_FOUND"
    assert (await backend.get("/schedules/none"))[0] == 404
    assert (await call(backend, "PATCH", "/schedules/none", {}))[0] == 404
    assert (await call(backend, "DELETE", "/schedules/none"))[0] == 404


async def test_the_client_does_all_that_the_api_does(backend: Backend) -> None:
    async with Client(f"http://127.0.0.1:{backend.client.port}") as client:
        made = await client.schedules.create("0 9 * * *", "resize", {"width": 3}, schedule_id="nine")
        assert await client.schedules.get("nine") == made
        changed = await client.schedules.update("nine", {"cron": "0 10 * * *"}, version=1)
        assert (changed.cron, changed.version) == ("0 10 * * *", 2)
        with pytest.raises(PreconditionFailed):
            await client.schedules.update("nine", {"cron": "0 11 * * *"}, version=1)
        assert (await client.schedules.pause("nine", reason="why")).status == "PAUSED"
        assert (await client.schedules.resume("nine")).status == "ACTIVE"
        task_id = (await client.schedules.trigger("nine", idempotency_key="k")).task_id
        assert (await client.get(task_id)).task_kwargs == {"width": 3}
        assert (await client.schedules.list(status=["ACTIVE"], task_name="resize")).total == 1
        await client.schedules.delete("nine")
        assert (await client.schedules.list()).total == 0
        with pytest.raises(ScheduleNotFound):
            await client.schedules.get("none")


async def test_the_command_line_does_all_that_the_api_does(backend: Backend) -> None:
    url = f"http://127.0.0.1:{backend.client.port}"

    async def run(*arguments: str) -> Done:
        done = await asyncio.to_thread(eventq, "schedules", *arguments, "--api", url)
        assert done.code == 0, done
        return done

    made = await run(
        "create", "30 2 * * *", "resize", "--id", "s", "--kwargs", '{"width": 4}', "--time-zone", "Europe/Berlin", "--json"
    )
    assert (made.json["schedule_id"], made.json["task_kwargs"]) == ("s", {"width": 4})
    assert ["arguments", "width=4"] in [line.split() for line in (await run("show", "s")).stdout.splitlines()]
    assert (await run("update", "s", "--cron", "0 4 * * *", "--if-version", "1", "--json")).json["version"] == 2
    assert "At 04:00 every day" in (await run("show", "s")).stdout
    assert "ACTIVE" in (await run("list")).stdout
    assert (await run("pause", "s", "--json")).json["status"] == "PAUSED"
    assert (await run("resume", "s", "--json")).json["status"] == "ACTIVE"
    task_id = (await run("trigger", "s")).stdout.strip()
    assert (await backend.get(f"/tasks/{task_id}"))[0] == 200
    bare = await run("create", "0 9 * * *", "resize", "--id", "t", "--kwargs", '{"width": 4}')
    assert bare.stdout == "t\n", "a script keeps it: id=$(eventq schedules create ...)"
    assert "At 09:00 every day (UTC), next at " in bare.stderr
    assert (await run("delete", "s", "--json")).json == {"schedule_id": "s", "status": "DELETED"}
    assert (await run("list", "--status", "deleted", "--json")).json["total"] == 1


async def test_the_table_of_schedules_is_the_fold_of_the_log(backend: Backend) -> None:
    await created(backend, schedule_id="one", catch_up="all", starts_at="2030-01-01T00:00:00Z")
    await backend.post("/schedules/one/pause")
    await backend.post("/schedules/one/trigger")
    await backend.get("/schedules/one")
    status, verified = await backend.post("/projection/verify")
    assert (status, verified["equal"]) == (200, True)
    assert verified["tables"]["schedules"]["rows"] == 1
