"""States on other machines: copies that save sending, and nothing that a result depends on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.engines import LocalGrid, RayGrid
from simulations.engines.held_states import PREFIX, HeldStates, KeptStates
from simulations.engines.state_files import MEMORY

CLIENT_APP = "engine_client:app"
STEPS = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from(["a", "b", ""]), st.booleans()), max_size=40
)


@given(STEPS, st.lists(st.integers(0, 40)))
def test_a_machine_is_asked_for_nothing_but_what_it_keeps(
    steps: list[tuple[int, str, bool]], ends: list[int]
) -> None:
    """`kept` is what machines have if they do as they are told."""
    held = HeldStates()
    kept: dict[str, dict[int, tuple[int, int]]] = {"a": {}, "b": {}}
    version: dict[int, int] = {}
    for step, (client, node, is_committed) in enumerate(steps):
        if node:
            number = held.new_number(node)
            kept[node][number] = (client, step)
            if is_committed:
                held.commit(client, number)
                version[client] = step
        elif is_committed:  # it ran on the driver's machine
            held.commit(client, None)
            version[client] = step
        if step in ends:
            held.end_round()
            for place, copies in kept.items():
                for outdated in held.take_outdated(place):
                    del copies[outdated]
        for one in range(1, 5):
            for place, copies in kept.items():
                found = held.number(one, place)
                assert found is None or copies[found] == (one, version[one])
    held.clear()
    for place, copies in kept.items():
        assert set(held.take_outdated(place)) == set(copies)
        assert all(held.number(one, place) is None for one in range(1, 5))


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as made:
        monkeypatch.setattr("simulations.engines.held_states.MEMORY", Path(made))
        yield Path(made)
        assert list(Path(made).iterdir()) == []


def test_workers_of_a_machine_share_what_they_keep(folders: Path) -> None:
    one, two = KeptStates("run"), KeptStates("run")
    one.keep(3, b"state")
    assert two.read(3) == b"state"
    assert two.read(4) is None
    two.delete([3, 4])
    assert one.read(3) is None
    one.keep(5, b"more")
    one.close()
    assert two.read(5) == b"more"
    two.close()


def test_what_nobody_holds_any_more_is_deleted(folders: Path) -> None:
    left = folders / f"{PREFIX}killed"
    left.mkdir()
    (left / "lock").touch()
    (left / "7").write_bytes(b"state")
    other = KeptStates("other")
    mine = KeptStates("mine")
    assert sorted(path.name for path in folders.iterdir()) == [f"{PREFIX}mine", f"{PREFIX}other"]
    other.close()
    mine.close()


def test_a_folder_that_is_gone_keeps_nothing(folders: Path) -> None:
    one, two = KeptStates("run"), KeptStates("run")
    for path in (folders / f"{PREFIX}run").iterdir():
        path.unlink()
    (folders / f"{PREFIX}run").rmdir()
    one.keep(1, b"state")
    assert two.read(1) is None
    one.close()
    two.close()


@pytest.mark.ray
@pytest.mark.slow
def test_states_are_sent_to_a_machine_that_lacks_them_only(cluster: Any, round_of: Any) -> None:
    local = LocalGrid(CLIENT_APP, 12)
    with RayGrid(CLIENT_APP, 12, address=cluster.address) as grid:
        sent: list[int] = []
        read = grid._states.read

        def noted(node_id: int) -> bytes:
            sent.append(node_id)
            return read(node_id)

        grid._states.read = noted  # type: ignore[method-assign]
        where: dict[int, str] = {}
        stayed = 0
        for number in range(1, 7):
            told = {"clients": 12, "round_number": number, "slow": 0.05}
            expected = local.send_and_receive(round_of(**told))
            if number == 5:
                lose_what_machines_keep()
            sent.clear()
            replies = grid.send_and_receive(round_of(**told))
            assert [reply.content for reply in replies] == [reply.content for reply in expected]
            now = {span.node_id: span.node for span in grid.spans}
            remote = {client for client, node in now.items() if node and client in where}
            moved = {client for client in remote if now[client] != where[client]}
            assert sorted(sent) == sorted(remote if number == 5 else moved)
            stayed += len(remote - moved)
            where = now
            assert grid.client_states() == local.client_states()
        assert stayed > 0
        sent.clear()
        grid.reset()
        local.reset()
        for number in (1, 2):
            told = {"clients": 12, "round_number": number}
            expected = local.send_and_receive(round_of(**told))
            replies = grid.send_and_receive(round_of(**told))
            assert [reply.content for reply in replies] == [reply.content for reply in expected]
        run = grid._held.run
    assert list(MEMORY.glob(f"{PREFIX}{run}*")) == []


def lose_what_machines_keep() -> None:
    for path in MEMORY.glob(f"{PREFIX}*/[0-9]*"):
        path.unlink()
