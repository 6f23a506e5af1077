"""Progress lines: not too many, with rate and time left."""

from __future__ import annotations

import pytest

from selectit_dagster.progress import Reporter, duration


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def run(times, **options):
    clock, lines = Clock(), []
    reporter = Reporter("scoring", "prompts", emit=lines.append, clock=clock, **options)
    for now, done in times:
        clock.now = now
        reporter.update(done, 100)
    return lines


def test_a_short_step_stays_silent():
    assert run([(0.5, 50), (1.0, 100)]) == []


def test_a_long_step_shows_one_line_per_interval_and_the_last():
    lines = run([(t, t) for t in range(1, 101)], interval=10.0)
    assert 10 <= len(lines) <= 12
    assert lines[-1].startswith("scoring: 100/100 prompts")


def test_a_line_has_rate_and_time_left():
    (line,) = run([(0, 0), (5, 20)])
    assert line == "scoring: 20/100 prompts, 4.0/s, 20 s left"


def test_what_a_resumed_step_finds_done_does_not_count_for_its_rate():
    (line,) = run([(0, 60), (10, 70)])
    assert "1.0/s" in line


def test_stored_lines_grow_with_the_logarithm_of_a_steps_length():
    week, hour = 7 * 24 * 3600, 3600
    counts = [len(run([(t, 0) for t in range(0, n, 5)], stretch=0.03)) for n in (hour, week)]
    assert 100 < counts[0] < 150
    assert 250 < counts[1] < 350


def test_metrics_follow_the_lines():
    seen = []
    run([(0, 0), (5, 20)], metrics=lambda figures, step: seen.append((figures, step)))
    assert seen == [({"done": 20.0}, 20)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.4, "8 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
