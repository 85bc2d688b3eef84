import itertools
from pathlib import Path

import pytest

from jobworker.errors import IllegalTransition
from jobworker.job.state import TRANSITIONS, Event, State, diagram, transition

LEGAL = [(s, e) for s, row in TRANSITIONS.items() for e in row]
ILLEGAL = [pair for pair in itertools.product(State, Event) if pair not in LEGAL]


def test_every_state_has_a_row():
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize(("state", "event"), LEGAL)
def test_a_legal_event_leads_on(state, event):
    assert transition(state, event) is TRANSITIONS[state][event]


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_an_illegal_event_raises_and_names_both(state, event):
    with pytest.raises(IllegalTransition, match=f"{state.value}.*{event.value}"):
        transition(state, event)


@pytest.mark.parametrize("state", [State.STOPPED, State.EXITED, State.LOST])
def test_nothing_follows_a_finished_state(state):
    assert state.finished
    assert not TRANSITIONS[state]


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING])
def test_an_unfinished_state_can_end_in_each_finished_one(state):
    assert {s for s in TRANSITIONS[state].values() if s.finished} == {
        State.STOPPED,
        State.EXITED,
        State.LOST,
    }


def test_the_diagram_in_the_architecture_page_is_the_table():
    page = Path(__file__).parents[3] / "ARCHITECTURE.md"
    assert diagram() in page.read_text()
