"""Facts about nats-server, nats-py and uuid-utils that eventq is built on, each tried. A new release that changes one of
them fails here, by name, before it fails somewhere else without."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, KeyValueConfig, RetentionPolicy, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NoKeysError
from pydantic import BaseModel
from uuid_utils.compat import uuid7

from eventq.events.atomic import store_together
from eventq.events.errors import LogUnavailable
from eventq.events.ingest import Outgoing, Refused
from tests.support.fast_ingest import ADD, STORE_AND_COMMIT, FastIngest
from tests.support.nats import NatsServer
from tests.support.poll import eventually

EXPECTED, EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence", "Nats-Expected-Last-Subject-Sequence-Subject"


def free(version: int, what: str = "1") -> dict[str, str]:
    """The check that nobody has written a version of `a.<what>`."""
    return {EXPECTED: "0", EXPECTED_SUBJECT: f"a.{what}.{version}.>"}


@pytest.fixture
async def nc(own_nats_server: NatsServer) -> AsyncIterator[Client]:
    nc = await nats.connect(own_nats_server.url, pending_size=0, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    yield nc
    await nc.close()


@pytest.fixture
async def js(nc: Client) -> JetStreamContext:
    """JetStream with the stream `A` of subjects `a.>`, fast ingest allowed."""
    js = nc.jetstream(timeout=5)
    await js.add_stream(StreamConfig(name="A", subjects=["a.>"], allow_batched=True, allow_direct=True))
    return js


@pytest.fixture
async def ingest(nc: Client, js: JetStreamContext) -> FastIngest:
    return await FastIngest.on(nc)


ATOMIC = StreamConfig(name="A", subjects=["a.>"], allow_batched=True, allow_atomic=True, allow_direct=True)


class TinyServer(NatsServer):
    """One whose disk holds 30 KB."""

    def _write_config(self) -> Path:
        config = super()._write_config()
        config.write_text(config.read_text().replace("max_file: 20GB", "max_file: 30KB"))
        return config


class TestFastIngest:
    """`<inbox>.<batch>.<flow 1>.<gap ok>.<sequence>.<operation>.$FI`"""

    async def test_opening_is_answered_with_ack_0_and_each_message_with_its_own(self, ingest: FastIngest) -> None:
        assert await ingest.ask("b", 1, "a.1.1.x", check=free(1)) == [
            {"type": "ack", "seq": 0, "msgs": 1},
            {"type": "ack", "seq": 1, "msgs": 1},
        ]
        assert await ingest.ask("b", 2, "a.1.2.x", check=free(2)) == [{"type": "ack", "seq": 2, "msgs": 1}]

    async def test_a_refused_message_is_named_and_the_next_goes_on(self, ingest: FastIngest) -> None:
        await ingest.ask("b", 1, "a.1.1.x", check=free(1))
        [refused] = await ingest.ask("b", 2, "a.1.1.x", check=free(1))
        assert (refused["type"], refused["seq"], refused["error"]["err_code"]) == ("err", 2, 10071)
        assert await ingest.ask("b", 3, "a.1.2.x", check=free(2)) == [{"type": "ack", "seq": 3, "msgs": 1}]

    async def test_a_gap_is_told_before_the_ack_that_covers_it(self, ingest: FastIngest) -> None:
        await ingest.ask("b", 1, "a.1.1.x")
        await ingest.send("b", 4, "a.1.4.x")
        await eventually(lambda: len(ingest.answers["b"]) == 4)
        assert ingest.answers["b"][2:] == [
            {"type": "gap", "last_seq": 2, "seq": 4},
            {"type": "ack", "seq": 4, "msgs": 1},
        ]

    async def test_an_unknown_batch_is_refused(self, ingest: FastIngest, js: JetStreamContext) -> None:
        await ingest.send("never-opened", 2, "a.1.1.x")
        await eventually(lambda: bool(ingest.answers["never-opened"]))
        assert ingest.answers["never-opened"][0]["error"]["err_code"] == 10208
        assert (await js.stream_info("A")).state.messages == 0

    async def test_ten_idle_seconds_end_a_batch(self, ingest: FastIngest) -> None:
        answer = await ingest.wait_until_idle_batches_are_forgotten("a")
        assert answer["error"]["err_code"] == 10208

    async def test_a_batch_never_committed_has_stored_what_it_acknowledged(
        self, ingest: FastIngest, js: JetStreamContext, own_nats_server: NatsServer
    ) -> None:
        await ingest.ask("b", 1, "a.1.1.x")
        await asyncio.to_thread(own_nats_server.restart, crash=True)

        async def stored() -> bool:
            try:
                return (await js.stream_info("A")).state.messages == 1
            except nats.errors.Error:
                return False

        await eventually(stored)

    async def test_a_commit_ends_the_batch(self, ingest: FastIngest) -> None:
        await ingest.ask("b", 1, "a.1.1.x")
        [done] = await ingest.ask("b", 2, "a.1.2.x", op=STORE_AND_COMMIT)
        assert (done["stream"], done["batch"], done["count"]) == ("A", "b", 2)
        [after] = await ingest.ask("b", 3, "a.1.3.x")
        assert after["error"]["err_code"] == 10208

    async def test_with_a_larger_flow_one_answer_stands_for_many_and_the_commit_for_all(self, ingest: FastIngest) -> None:
        for number in range(1, 9):
            await ingest.send("b", number, f"a.1.{number}.x", flow=4, op=ADD if number < 8 else STORE_AND_COMMIT)
        await eventually(lambda: "count" in ingest.answers["b"][-1] if ingest.answers["b"] else False)
        *acks, done = ingest.answers["b"]
        assert [(ack["type"], ack["seq"]) for ack in acks] == [("ack", 0), ("ack", 4)]
        assert done["count"] == 8

    @pytest.mark.parametrize("refused", [1, 2, 3, 4])
    async def test_what_a_batch_refuses_is_told_before_its_commit(
        self, ingest: FastIngest, js: JetStreamContext, refused: int
    ) -> None:
        """Also the first, which opens it, and the last, which commits it all the same."""
        await js.publish("a.9.1.x", b"")
        for number in range(1, 5):
            subject, check = ("a.9.1.x", free(1, "9")) if number == refused else (f"a.{number}.1.x", free(1, str(number)))
            await ingest.send("b", number, subject, check=check, flow=32, op=ADD if number < 4 else STORE_AND_COMMIT)
        await eventually(lambda: any("count" in answer for answer in ingest.answers["b"]))
        errors = [answer["seq"] for answer in ingest.answers["b"] if "error" in answer]
        assert errors == [refused]
        assert "count" in ingest.answers["b"][-1]
        assert (await js.stream_info("A")).state.messages == 4

    async def test_a_gap_is_told_before_the_commit_which_counts_what_never_came(
        self, ingest: FastIngest, js: JetStreamContext
    ) -> None:
        for number in (1, 2, 4):
            await ingest.send("b", number, f"a.{number}.1.x", flow=32, op=ADD if number < 4 else STORE_AND_COMMIT)
        await eventually(lambda: any("count" in answer for answer in ingest.answers["b"]))
        *_, gap, done = ingest.answers["b"]
        assert (gap["type"], done["count"]) == ("gap", 4)
        assert (await js.stream_info("A")).state.messages == 3

    async def test_the_1001st_open_batch_is_refused(self, ingest: FastIngest) -> None:
        await ingest.open(1_000, "a")
        await ingest.send("one-more", 1, "a.1.1.x")
        await eventually(lambda: bool(ingest.answers["one-more"]))
        error = ingest.answers["one-more"][0]["error"]
        assert (error["code"], error["err_code"]) == (429, 10211)

    async def test_a_stream_that_does_not_allow_it_says_so(self, nc: Client, ingest: FastIngest) -> None:
        await nc.jetstream().add_stream(name="B", subjects=["b.>"])
        await ingest.send("b", 1, "b.1")
        await eventually(lambda: bool(ingest.answers["b"]))
        assert ingest.answers["b"][0]["error"]["err_code"] == 10205

    async def test_a_subject_of_no_stream_has_no_responders(self, ingest: FastIngest) -> None:
        await ingest.send("b", 1, "nowhere")
        await eventually(lambda: bool(ingest.answers["b"]))
        assert ingest.answers["b"] == [{"status": "503"}]


class Atomic:
    """A bare client of atomic batches. Only the last message, which commits, asks for an answer."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    async def send(self, batch: str, number: int, subject: str, check: dict[str, str] | None = None) -> None:
        await self._nc.publish(subject, b"{}", headers=self._headers(batch, number, check))

    async def commit(self, batch: str, number: int, subject: str, check: dict[str, str] | None = None) -> dict[str, Any]:
        headers = {**self._headers(batch, number, check), "Nats-Batch-Commit": "1"}
        answer: dict[str, Any] = json.loads((await self._nc.request(subject, b"{}", timeout=5, headers=headers)).data)
        return answer

    @staticmethod
    def _headers(batch: str, number: int, check: dict[str, str] | None) -> dict[str, str]:
        return {**(check or {}), "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}


class TestAtomicBatch:
    """That it is on the disk before it is answered shows `tests/events/test_power_cut.py`."""

    @pytest.fixture
    async def atomic(self, nc: Client, js: JetStreamContext) -> Atomic:
        await js.update_stream(ATOMIC)
        return Atomic(nc)

    async def test_the_commit_is_answered_for_all(self, atomic: Atomic, js: JetStreamContext) -> None:
        for number in range(1, 4):
            await atomic.send("b", number, f"a.{number}.1.x", free(1, str(number)))
        assert await atomic.commit("b", 4, "a.4.1.x", free(1, "4")) == {"stream": "A", "seq": 4, "batch": "b", "count": 4}
        assert [(await js.get_msg("A", number)).subject for number in range(1, 5)] == [f"a.{n}.1.x" for n in range(1, 5)]

    @pytest.mark.parametrize("refused", [1, 2, 3])
    async def test_one_that_is_refused_refuses_all_and_is_not_named(
        self, atomic: Atomic, js: JetStreamContext, refused: int
    ) -> None:
        await js.publish("a.9.1.x", b"")
        subjects = ["a.9.1.x" if number == refused else f"a.{number}.1.x" for number in range(1, 4)]
        for number in (1, 2):
            await atomic.send("b", number, subjects[number - 1], free(1, subjects[number - 1].split(".")[1]))
        answer = await atomic.commit("b", 3, subjects[2], free(1, subjects[2].split(".")[1]))
        assert (answer["error"]["err_code"], answer["seq"]) == (10071, 0)
        assert (await js.stream_info("A")).state.messages == 1

    async def test_one_that_never_came_refuses_all(self, atomic: Atomic, js: JetStreamContext) -> None:
        await atomic.send("b", 1, "a.1.1.x")
        answer = await atomic.commit("b", 3, "a.3.1.x")
        assert answer["error"]["err_code"] == 10176
        assert (await js.stream_info("A")).state.messages == 0

    async def test_a_check_does_not_see_what_came_before_in_the_batch(self, atomic: Atomic, js: JetStreamContext) -> None:
        """Why no two messages of such a group may have the same check."""
        await atomic.send("b", 1, "a.1.1.x", free(1))
        assert (await atomic.commit("b", 2, "a.1.1.y", free(1)))["count"] == 2
        assert (await js.stream_info("A")).state.messages == 2

    async def test_a_check_sees_what_an_open_pipe_stored_meanwhile(
        self, atomic: Atomic, ingest: FastIngest, js: JetStreamContext
    ) -> None:
        await ingest.ask("pipe", 1, "a.7.1.x")
        await atomic.send("b", 1, "a.2.1.x", free(1, "2"))
        await ingest.ask("pipe", 2, "a.1.1.x", check=free(1))
        assert (await atomic.commit("b", 2, "a.1.1.y", free(1)))["error"]["err_code"] == 10071
        assert (await ingest.ask("pipe", 3, "a.2.1.y", check=free(1, "2")))[-1]["type"] == "ack"
        assert (await js.stream_info("A")).state.messages == 3

    async def test_the_51st_open_batch_is_refused(self, atomic: Atomic) -> None:
        for number in range(50):
            await atomic.send(f"b{number}", 1, f"a.{number}.1.x")
        await atomic.send("one-more", 1, "a.99.1.x")
        assert (await atomic.commit("one-more", 2, "a.99.2.x"))["error"]["err_code"] in {10176, 10210}

    async def test_more_than_1000_messages_are_refused(self, atomic: Atomic, js: JetStreamContext) -> None:
        for number in range(1, 1_001):
            await atomic.send("b", number, f"a.{number}.1.x")
        assert "error" in await atomic.commit("b", 1_001, "a.1001.1.x")
        assert (await js.stream_info("A")).state.messages == 0

    async def test_a_stream_that_does_not_allow_it_stores_nothing(self, nc: Client, js: JetStreamContext) -> None:
        atomic = Atomic(nc)
        await atomic.send("b", 1, "a.1.1.x")
        assert (await atomic.commit("b", 2, "a.2.1.x"))["error"]["err_code"] == 10174
        assert (await js.stream_info("A")).state.messages == 0


class TestVersionCheck:
    async def test_a_version_is_written_once(self, js: JetStreamContext) -> None:
        await js.publish("a.1.1.x", b"", headers=free(1))
        with pytest.raises(APIError) as refused:
            await js.publish("a.1.1.y.cpu", b"", headers=free(1))
        assert refused.value.err_code == 10071

    @pytest.mark.parametrize("misspelt", ["a..>", "nostream.>", "a.2.1.>"])
    async def test_a_misspelt_filter_is_no_check_at_all(self, js: JetStreamContext, misspelt: str) -> None:
        """Why `version_check` is the only function that writes it."""
        await js.publish("a.1.1.x", b"")
        await js.publish("a.1.1.x", b"", headers={EXPECTED: "0", EXPECTED_SUBJECT: misspelt})
        assert (await js.stream_info("A")).state.messages == 2

    async def test_a_full_stream_refuses_with_its_own_code(self, nc: Client, js: JetStreamContext) -> None:
        await js.add_stream(StreamConfig(name="S", subjects=["s"], max_bytes=1_000, discard="new"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await js.publish("s", b"x" * 500)
        with pytest.raises(APIError) as refused:
            await js.publish("s", b"x" * 500)
        assert refused.value.err_code == 10077


class TestStoredTogether:
    """With `events/atomic.py`, as an erasure does it."""

    async def stored(self, nc: Client, *subjects: str, check: dict[str, str] | None = None) -> int:
        messages = [Outgoing(subject, b"x", {}) for subject in subjects]
        messages[-1] = messages[-1]._replace(headers=check or {})
        return await store_together(nc, messages)

    async def test_all_stand_one_after_the_other_beside_an_open_pipe(self, nc: Client, ingest: FastIngest) -> None:
        await nc.jetstream().update_stream(ATOMIC)
        await ingest.ask("b", 1, "a.1.1.x", check=free(1))
        assert await self.stored(nc, "a.1.2.x", "a.1.3.x", "a.1.4.x", check=free(4)) == 4
        assert await ingest.ask("b", 2, "a.1.5.x", check=free(5)) == [{"type": "ack", "seq": 2, "msgs": 1}]
        last = await nc.jetstream().get_last_msg("A", "a.1.>")
        assert (last.seq, last.subject) == (5, "a.1.5.x")

    async def test_a_check_that_fails_refuses_all(self, nc: Client, js: JetStreamContext) -> None:
        await js.update_stream(ATOMIC)
        await js.publish("a.1.3.x", b"")
        with pytest.raises(Refused):
            await self.stored(nc, "a.1.1.gone", "a.1.3.x", check=free(3))
        assert (await js.stream_info("A")).state.messages == 1

    async def test_a_broker_without_room_keeps_the_first_of_them_and_says_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At the limit of the whole server, not of the stream. Why a placeholder leads on to what it stands for."""
        monkeypatch.setattr("eventq.events.atomic.ANSWER_S", 1.0)
        server = TinyServer(tmp_path / "nats")
        server.start()
        nc = await nats.connect(server.url)
        try:
            js = nc.jetstream()
            await js.add_stream(ATOMIC)
            for number in range(14):
                await js.publish(f"a.0.{number}.x", b"y" * 1_950)
            with pytest.raises(LogUnavailable):
                await store_together(nc, [Outgoing(f"a.1.{number}.gone", b"z" * 400, {}) for number in range(7)])
            stored = (await js.stream_info("A")).state.messages - 14
            assert 0 < stored < 7
        finally:
            await nc.close()
            server.stop()

    async def test_what_it_stored_counts_for_checks_that_follow(self, nc: Client, ingest: FastIngest) -> None:
        await nc.jetstream().update_stream(ATOMIC)
        await self.stored(nc, "a.1.1.gone", "a.1.3.x", check=free(3))
        [_, refused] = await ingest.ask("b", 1, "a.1.1.x", check=free(1))
        assert refused["error"]["err_code"] == 10071


async def test_a_stream_allows_1000_consumers_unless_told_otherwise(js: JetStreamContext) -> None:
    for start in range(0, 1_000, 100):
        names = [f"c{number}" for number in range(start, start + 100)]
        await asyncio.gather(*[js.add_consumer("A", ConsumerConfig(durable_name=name)) for name in names])
    with pytest.raises(APIError) as refused:
        await js.add_consumer("A", ConsumerConfig(durable_name="one-more"))
    assert refused.value.err_code == 10026


async def test_a_schedule_fires_into_its_target_and_not_past_core_subscribers(nc: Client) -> None:
    js = nc.jetstream()
    config = {"name": "T", "subjects": ["sched.>", "due.>"], "retention": "workqueue", "allow_msg_schedules": True}
    assert "error" not in json.loads((await nc.request("$JS.API.STREAM.CREATE.T", json.dumps(config).encode())).data)
    core: list[str] = []

    async def take(message: Any) -> None:
        core.append(message.subject)

    await nc.subscribe("due.>", cb=take)
    due = datetime.now(UTC) + timedelta(milliseconds=300)
    at = due.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    await js.publish("sched.t1.1", b"body", headers={"Nats-Schedule": f"@at {at}", "Nats-Schedule-Target": "due.t1.1"})

    subscription = await js.pull_subscribe("due.>", stream="T", durable="p")
    [fired] = await subscription.fetch(1, timeout=5)

    assert (fired.subject, fired.data) == ("due.t1.1", b"body")
    assert fired.metadata.timestamp >= due - timedelta(milliseconds=1)
    await fired.ack_sync()
    await nc.flush()
    assert core == []
    assert (await js.stream_info("T")).state.messages == 0


async def test_without_a_buffer_a_publish_fails_at_once_while_disconnected(
    nc: Client, js: JetStreamContext, own_nats_server: NatsServer
) -> None:
    """With the default buffer it would be sent after the reconnect, long after it was reported as failed."""
    own_nats_server.kill()
    await eventually(lambda: not nc.is_connected)
    with pytest.raises(nats.errors.OutboundBufferLimitError):
        await nc.publish("a.1.1.x", b"ghost")
    own_nats_server.start()
    await eventually(lambda: nc.is_connected)
    await nc.flush()
    assert (await js.stream_info("A")).state.messages == 0


async def test_the_reply_of_a_pulled_message_tells_its_positions(nc: Client, js: JetStreamContext) -> None:
    """`$JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<stored ns>.<pending>`"""
    for number in range(1, 4):
        await js.publish(f"a.{number}", b"")
    await js.delete_msg("A", 1)
    await js.add_consumer("A", ConsumerConfig(name="r", ack_policy=AckPolicy.NONE))
    replies: asyncio.Queue[str] = asyncio.Queue()

    async def take(message: Any) -> None:
        replies.put_nowait(message.reply)

    inbox = nc.new_inbox()
    await nc.subscribe(inbox, cb=take)
    await nc.publish("$JS.API.CONSUMER.MSG.NEXT.A.r", b'{"batch":2,"expires":1000000000}', inbox)
    first, second = [(await asyncio.wait_for(replies.get(), 5)).split(".") for _ in range(2)]

    assert first[:5] == ["$JS", "ACK", "A", "r", "1"]
    assert (first[5], first[6], first[8]) == ("2", "1", "1")
    assert (second[5], second[6], second[8]) == ("3", "2", "0")
    stored = datetime.fromtimestamp(int(first[7]) / 1e9, UTC)
    assert abs(datetime.now(UTC) - stored) < timedelta(minutes=1)
    assert len(first) == 9


async def test_a_pull_that_is_not_served_says_what_it_left(nc: Client, js: JetStreamContext) -> None:
    await js.publish("a.1", b"")
    await js.add_consumer("A", ConsumerConfig(name="r", ack_policy=AckPolicy.NONE))
    statuses: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def take(message: Any) -> None:
        if not message.reply:
            statuses.put_nowait(message.headers)

    inbox = nc.new_inbox()
    await nc.subscribe(inbox, cb=take)
    await nc.publish("$JS.API.CONSUMER.MSG.NEXT.A.r", b'{"batch":5,"expires":200000000}', inbox)
    headers = await asyncio.wait_for(statuses.get(), 5)
    assert (headers["Status"], headers["Nats-Pending-Messages"]) == ("408", "4")


async def test_a_key_that_lapsed_leaves_a_marker_without_a_value(nc: Client) -> None:
    js = nc.jetstream()
    bucket = await js.create_key_value(KeyValueConfig(bucket="P", ttl=1, limit_marker_ttl=60))
    await bucket.put("w1", b"alive")
    assert (await bucket.get("w1")).value == b"alive"

    async def lapsed() -> bool:
        message = await js.get_last_msg("KV_P", "$KV.P.w1")
        return not message.data

    await eventually(lapsed, timeout=5)
    assert not (await bucket.get("w1")).value
    with pytest.raises(NoKeysError):
        await bucket.keys()


async def test_the_same_consumer_made_by_three_at_once_is_one(js: JetStreamContext) -> None:
    config = ConsumerConfig(durable_name="w", filter_subject="a.*.x", ack_policy=AckPolicy.EXPLICIT)
    await asyncio.gather(*[js.add_consumer("A", config) for _ in range(3)])
    assert len(await js.consumers_info("A")) == 1


async def test_a_work_queue_forgets_what_was_acknowledged(nc: Client) -> None:
    js = nc.jetstream()
    await js.add_stream(StreamConfig(name="W", subjects=["w"], retention=RetentionPolicy.WORK_QUEUE))
    await js.publish("w", b"")
    subscription = await js.pull_subscribe("w", durable="d", stream="W")
    [message] = await subscription.fetch(1, timeout=5)
    await message.ack_sync()
    assert (await js.stream_info("W")).state.messages == 0


def varz(server: NatsServer) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.monitor_url}/varz", timeout=5) as answer:
        found: dict[str, Any] = json.loads(answer.read())["jetstream"]["config"]
    return found


def test_the_monitoring_page_tells_how_writes_are_synced(
    own_nats_server: NatsServer, start_nats_server: Callable[..., NatsServer]
) -> None:
    assert varz(own_nats_server)["sync_always"] is True
    lazy = varz(start_nats_server("lazy", sync_interval=None))
    assert not lazy.get("sync_always")
    assert lazy["sync_interval"] == 120 * 10**9


def test_ids_are_uuids_to_everybody_and_sort_by_their_time() -> None:
    class Model(BaseModel):
        id: UUID

    made = [uuid7() for _ in range(1_000)]
    assert [str(each) for each in made] == sorted(str(each) for each in made)
    assert len(set(made)) == 1_000
    assert all(isinstance(each, UUID) and each.version == 7 for each in made)
    assert Model(id=made[0]).id == made[0]
    assert Model.model_validate_json(f'{{"id": "{made[0]}"}}').id == made[0]
