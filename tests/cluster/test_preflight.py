"""What a cluster can hold, by hand-made clusters."""

from cluster.preflight import TRIAL_CPUS, Demand, Node, fits, refusal


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


def test_a_refused_search_is_told_how_many_trials_fit_at_once():
    line = refusal(Demand(workers=2, cpus=1, gpus=0, trials=4), [Node(cpus=5, gpus=0)])
    assert "4 trials at once" in line
    assert "max_concurrent=2" in line


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
