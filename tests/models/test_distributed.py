import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from clamplib.models import distributed


def test_a_process_alone_answers_itself(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.start()
    assert not dist.is_initialized()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.total(2.5) == 2.5
    assert distributed.largest(3) == 3
    assert distributed.gather("a") == ["a"]
    distributed.wait()
    distributed.stop()


def test_the_own_device_can_compute():
    assert torch.ones(2, device=distributed.own_device()).sum().item() == 2


def test_a_process_without_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="a GPU for each process, got process 2 of a machine with 1"):
        distributed.own_device()


def ask_the_others(rank, store, results):
    """One process of two: its answers, and its rank after it has left."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    answers = {
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "total": distributed.total(0.5 + rank),
        "largest": distributed.largest(15 * (1 - rank)),
        "gather": distributed.gather({"rank": rank, "rows": torch.full((rank,), 7)}),
    }
    distributed.wait()
    distributed.stop()
    torch.save({**answers, "after": distributed.world_size()}, f"{results}/{rank}.pt")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    if sys.platform == "win32":
        pytest.skip("gloo over a file needs POSIX")
    folder = tmp_path_factory.mktemp("answers")
    mp.spawn(ask_the_others, (folder / "store", folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_processes_know_their_number(answers):
    assert [answer["rank"] for answer in answers] == [0, 1]
    assert [answer["world_size"] for answer in answers] == [2, 2]


def test_numbers_of_all_processes(answers):
    assert [answer["total"] for answer in answers] == [2.0, 2.0]
    assert [answer["largest"] for answer in answers] == [15, 15]


def test_values_are_gathered_in_the_order_of_the_ranks(answers):
    for answer in answers:
        assert [value["rank"] for value in answer["gather"]] == [0, 1]
        assert [value["rows"].tolist() for value in answer["gather"]] == [[], [7]]


def test_a_process_that_left_is_alone(answers):
    assert [answer["after"] for answer in answers] == [1, 1]
