import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradstep.clock import Clock, Duration
from gradstep.errors import RecipeError

durations = st.builds(Duration, st.integers(0, 10**12), st.sampled_from(["step", "epoch"]))
clocks = st.builds(Clock, st.integers(1, 50), st.integers(1, 500))


@given(durations)
def test_a_duration_reads_back_what_it_writes(duration):
    assert Duration.parse(str(duration), "it") == duration
    assert Duration.parse(duration, "it") is duration


@given(
    st.integers(0, 10**6), st.sampled_from(["step", "epoch"]), st.booleans(), *[st.sampled_from(["", " ", "  "])] * 3
)
def test_spaces_and_the_plural_are_free(amount, unit, plural, before, between, after):
    text = f"{before}{amount}{between}{unit}{'s' * plural}{after}"
    assert Duration.parse(text, "it") == Duration(amount, unit)


def test_one_is_written_in_the_singular():
    assert [str(Duration(n, "epoch")) for n in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]


@pytest.mark.parametrize(
    "wrong",
    ["", "3", "epochs", "-1 steps", "1.5 epochs", "1e3 steps", "3 weeks", "3 epochs 2", None, 2.0, b"1 step", []],
)
def test_what_is_no_duration_is_refused_with_the_settings_name_and_an_example(wrong):
    with pytest.raises(RecipeError) as caught:
        Duration.parse(wrong, "patience")
    assert str(caught.value).startswith(f"patience: {wrong!r} ")
    assert "'500 steps' or '1 epoch'" in str(caught.value)


def test_a_number_without_its_unit_is_offered_both():
    with pytest.raises(RecipeError, match=r"evaluate_every: 7 is not .*'7 steps' or '7 epochs'"):
        Duration.parse(7, "evaluate_every")


@given(clocks, st.integers(0, 10**6))
def test_epoch_and_batch_say_exactly_which_step_it_is(clock, step):
    epoch, batch = clock.epoch(step), clock.batch(step)
    assert epoch >= 1
    assert 0 <= batch < clock.steps_per_epoch
    assert (epoch - 1) * clock.steps_per_epoch + batch == step


@given(clocks, st.integers(0, 10**4))
def test_an_epoch_ends_exactly_where_the_next_step_belongs_to_another(clock, done):
    assert clock.ends_epoch(done) == (done > 0 and clock.epoch(done) != clock.epoch(done - 1))


@given(clocks, st.integers(1, 60), st.sampled_from(["step", "epoch"]))
def test_what_is_due_every_so_often_is_due_at_the_multiples_and_not_before_the_first_step(clock, amount, unit):
    every = Duration(amount, unit)
    length = amount * clock.steps_per_epoch if unit == "epoch" else amount
    assert clock.steps(every) == length
    assert [done for done in range(200) if clock.due(done, every)] == list(range(length, 200, length))


@given(clocks, st.integers(0, 100))
def test_every_epoch_is_due_when_an_epoch_ends_and_none_is_never_due(clock, done):
    assert clock.due(done, Duration(1, "epoch")) == clock.ends_epoch(done)
    assert not clock.due(done, None)
