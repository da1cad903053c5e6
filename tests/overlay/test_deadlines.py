"""Deadlines: what a node's one timer is armed from."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.overlay.deadlines import Deadlines

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.sampled_from("abcd"), st.integers(0, 20)),
        st.tuples(st.just("drop"), st.sampled_from("abcd"), st.just(0)),
        st.tuples(st.just("due"), st.just(""), st.integers(0, 20)),
    ),
    max_size=40,
)


@given(STEPS)
def test_it_behaves_like_a_map_from_names_to_times(steps: list[tuple[str, str, int]]) -> None:
    """Moved, dropped and set anew at the same moment: stale entries never surface, and none is lost."""
    deadlines: Deadlines[str] = Deadlines()
    model: dict[str, int] = {}
    for what, key, when in steps:
        if what == "set":
            deadlines.set(key, when)
            model[key] = when
        elif what == "drop":
            deadlines.drop(key)
            model.pop(key, None)
        else:
            due = deadlines.due(when)
            assert sorted(due) == sorted(name for name, time in model.items() if time <= when)
            assert [model[name] for name in due] == sorted(model[name] for name in due), "earliest first"
            for name in due:
                del model[name]
        assert deadlines.next() == min(model.values(), default=None)
        assert all((name in deadlines) == (name in model) for name in "abcd")


def test_equal_deadlines_are_due_in_the_order_in_which_they_were_set() -> None:
    """Order becomes the order of effects: it must not depend on the keys (DESIGN 4, determinism)."""
    deadlines: Deadlines[str] = Deadlines()
    for key in "zay":
        deadlines.set(key, 1.0)
    assert deadlines.due(1.0) == ["z", "a", "y"]
