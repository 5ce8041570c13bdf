"""The simulated fleet: what is worked and loaded adds up, and the queue is better than none."""

from __future__ import annotations

from bench.fleet import QUEUES, Fleet, simulate


def test_a_small_fleet_on_the_real_queue_loads_little_and_waits_little() -> None:
    fleet = Fleet(workers=20, checkpoints=4, adapters=100, units=8, unit_examples=2048)
    runs = {name: simulate(fleet, make) for name, make in QUEUES.items()}
    own = runs["evalcore"]
    units = 104 * 8
    assert 104 <= own.loads[0] < 1.4 * 104
    assert abs(own.loads_over_least - own.loads[0] / 104) < 1e-9
    assert own.waiting_pct + own.idle_pct < 5
    assert runs["random units"].loads[0] > 0.9 * units
    assert runs["subjects in turn"].loads[0] == 104
    assert own.hours < min(runs["random units"].hours, runs["subjects in turn"].hours)
    alone = simulate(Fleet(1, 2, 3, 4, 100, 10.0, 1.0, spread=0.0), QUEUES["evalcore"])
    assert alone.loads == (5, 2)
    assert abs(alone.hours * 3600 - (5 * 4 * 10 + 5)) < 0.5
