"""What a cluster can hold, by hand-made clusters."""

import pytest

from cluster.preflight import TRIAL_CPUS, Demand, Node, check_resources, fits, refusal, room_for_trials
from sam3dist.config.distill import DistillConfig
from sam3dist.config.load import with_overrides
from sam3dist.errors import ResourceError
from tests.cluster.conftest import CPUS


def test_a_worker_fits_on_one_node_or_not_at_all():
    halves = [Node(cpus=2, gpus=0), Node(cpus=2, gpus=0)]
    assert fits(Demand(workers=2, cpus=2, gpus=0), halves)
    assert not fits(Demand(workers=1, cpus=3, gpus=0), halves)


def test_trials_need_their_drivers_beside_the_workers():
    full = [Node(cpus=4, gpus=0)]
    assert fits(Demand(workers=2, cpus=2, gpus=0), full)
    assert not fits(Demand(workers=2, cpus=2, gpus=0, trials=1), full)
    assert fits(Demand(workers=2, cpus=2, gpus=0, trials=1), [Node(cpus=4 + TRIAL_CPUS, gpus=0)])


def test_gpus_and_cpus_must_be_on_the_same_node():
    apart = [Node(cpus=8, gpus=0), Node(cpus=0, gpus=8)]
    assert not fits(Demand(workers=1, cpus=1, gpus=1), apart)
    assert fits(Demand(workers=8, cpus=1, gpus=1), [Node(cpus=8, gpus=8)])


def test_many_small_shares_fill_a_node_whatever_the_rounding():
    assert fits(Demand(workers=10, cpus=0.1, gpus=0), [Node(cpus=1, gpus=0)])
    assert not fits(Demand(workers=11, cpus=0.1, gpus=0), [Node(cpus=1, gpus=0)])


def test_a_refusal_says_what_is_asked_what_is_there_and_the_way_out():
    line = refusal(Demand(workers=6, cpus=1, gpus=0), [Node(cpus=4, gpus=0)])
    assert "6 workers with 1 CPU" in line
    assert "1 node with 4 CPU" in line
    assert "strategy.num_workers=4" in line
    assert "run.num_cpus=6" in line
    assert "\n" not in line


def test_a_refused_search_is_told_what_one_trial_needs():
    line = refusal(Demand(workers=2, cpus=1, gpus=0, trials=1), [Node(cpus=1, gpus=0)])
    assert "1 trials at once, each of 2 workers with 1 CPU each and 0.1 CPU for its driver are asked" in line
    assert "strategy.num_workers=1" in line


def test_teachers_that_all_trials_share_need_room_of_their_own():
    four = [Node(cpus=8, gpus=2), Node(cpus=8, gpus=2)]
    assert fits(Demand(workers=1, cpus=1, gpus=1, trials=3, teachers=1), four)
    assert not fits(Demand(workers=1, cpus=1, gpus=1, trials=3, teachers=2), four)
    assert "and 2 teachers with as much" in refusal(Demand(workers=1, cpus=1, gpus=1, trials=3, teachers=2), four)


@pytest.mark.slow
def test_a_search_takes_as_many_trials_at_once_as_the_cluster_holds(joined: object, tiny_run: DistillConfig):
    assert room_for_trials(tiny_run.strategy, wanted=9) == CPUS - 1  # beside a tenth for each driver
    assert room_for_trials(tiny_run.strategy, wanted=2) == 2
    with_two = with_overrides(tiny_run, {"strategy.num_workers": 2})
    assert room_for_trials(with_two.strategy, wanted=9, teachers=1) == 1
    with pytest.raises(ResourceError, match=r"1 trials at once, each of 5 workers .* strategy.num_workers=4"):
        room_for_trials(with_overrides(tiny_run, {"strategy.num_workers": 5}).strategy, wanted=9)


@pytest.mark.slow
def test_a_run_that_may_do_with_fewer_workers_is_not_refused(joined: object, tiny_run: DistillConfig):
    many = with_overrides(tiny_run, {"strategy.num_workers": 40})
    with pytest.raises(ResourceError, match="40 workers"):
        check_resources(many.strategy)
    check_resources(with_overrides(many, {"strategy.min_workers": 2}).strategy)


def test_who_asks_for_gpus_where_there_are_none_is_told_so():
    line = refusal(Demand(workers=1, cpus=1, gpus=1), [Node(cpus=4, gpus=0)])
    assert "strategy.use_gpu=false" in line


def test_too_few_gpus_are_told_as_such_and_not_as_cpus():
    line = refusal(Demand(workers=4, cpus=1, gpus=1), [Node(cpus=64, gpus=1), Node(cpus=64, gpus=2)])
    assert line.endswith("; set strategy.num_workers=3, or join a cluster with more GPUs (run.address).")
    half = refusal(Demand(workers=1, cpus=1, gpus=1), [Node(cpus=4, gpus=0.5)])
    assert half.endswith("; join a cluster with more GPUs (run.address).")


def test_gpus_whose_node_has_too_few_cpus_are_told_to_take_fewer():
    line = refusal(Demand(workers=4, cpus=4, gpus=1), [Node(cpus=8, gpus=4)])
    assert "; set strategy.num_workers=2, or lower strategy.cpus_per_worker, or offer more CPUs" in line
