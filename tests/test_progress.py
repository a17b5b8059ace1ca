"""One bar for a whole run, the time left for all of it, and where time went."""

import pytest

from kdad import progress
from kdad.progress import Run, Stage, current, running, track

STAGES = [Stage("reading", 10, 1), Stage("training", 4, 10), Stage("testing", 5, 10)]  # 10, 40 and 50 of 100


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_units_count_by_their_cost_and_earlier_stages_are_done(clock):
    run = Run(STAGES)
    assert run.done == 0
    run.advance("reading", 5)
    assert run.done == pytest.approx(0.05)
    run.advance("training", 1)
    assert run.done == pytest.approx(0.20)
    run.advance("reading", 5)  # over
    run.advance("unknown", 5)
    assert run.done == pytest.approx(0.20)
    run.advance("testing", 9)  # more than planned
    assert run.done == pytest.approx(1)
    run.close()


def test_no_more_than_the_whole_is_done_however_it_is_rounded(clock):
    """From Python 3.12 on, `sum` is more exact than the additions of the stages before and the present one."""
    run = Run([Stage("reading", 1, 0.1), Stage("training", 1, 0.2), Stage("testing", 1, 0.3)])
    for stage in run.stages:
        clock[0] += 1
        run.advance(stage)
    assert (run.done, run.seconds_left) == (1, 0)
    run.close()


def test_time_left_is_of_the_whole_run(clock):
    run = Run(STAGES)
    assert run.seconds_left is None
    clock[0] += 10
    run.advance("reading", 10)
    assert run.seconds_left == pytest.approx(90)
    clock[0] += 10
    run.advance("training", 2)
    assert run.seconds_left == pytest.approx(20 / 0.3 * 0.7)
    run.close()


def test_what_an_earlier_run_has_done_takes_no_time_and_says_nothing_of_the_pace(clock):
    run = Run(STAGES)
    clock[0] += 10
    run.advance("reading", 10)
    run.skip("training", 3)
    assert run.done == pytest.approx(0.4)
    assert run.seconds_left == pytest.approx(60)
    run.close()


def test_reports_say_where_a_run_is_and_where_time_went(clock):
    said = []
    run = Run(STAGES, said.append)
    run.advance("reading")
    clock[0] += 7
    run.advance("training", 0.5)
    clock[0] += 30
    run.advance("testing")
    clock[0] += 3
    run.close()
    assert [told["phase"] for told in said if told["phase"]] == ["reading", "training", "testing", "testing"][
        -len(said) :
    ]
    assert said[-1]["stages"] == {"reading": 7, "training": 30, "testing": 3}
    assert [told["done"] for told in said] == sorted(told["done"] for told in said)


def test_a_run_within_another_is_a_part_of_it(clock):
    with running(lambda: STAGES) as outer:
        with running(lambda: pytest.fail("no other plan is asked for")) as inner:
            assert inner is outer is current()
            assert list(track("reading", "abc")) == ["a", "b", "c"]
        assert current() is outer
        assert outer.done == pytest.approx(0.03)
    assert outer.done == 1
    assert current() is None
    assert list(track("reading", "abc")) == ["a", "b", "c"]


def test_a_run_that_fails_takes_its_bar_away(capsys):
    with pytest.raises(ZeroDivisionError), running(lambda: STAGES):
        progress.advance("training")
        raise ZeroDivisionError
    assert current() is None
    assert "training" in capsys.readouterr().err
