"""What a model is asked: a system turn before prompts, and dialogues as one user turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.text.prompts import one_user_turn
from reproalign.common.verbs.config import SampleConfig
from reproalign.common.verbs.sample import asked, sampling_rules

DIALOGUE: list[Message] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
]


def test_prompts_stay_as_they_are_unless_something_is_asked_for():
    assert asked([DIALOGUE], SampleConfig()) == [DIALOGUE]


def test_a_system_turn_stands_before_prompts_that_have_none():
    own: list[Message] = [{"role": "system", "content": "Mine."}, *DIALOGUE]
    found = asked([DIALOGUE, own], SampleConfig(system="Be kind."))
    assert found == [[{"role": "system", "content": "Be kind."}, *DIALOGUE], own]


def test_a_dialogue_becomes_one_turn_whose_marks_are_deleted():
    """Words between turns run into each other, as in the release; only the user's mark takes its blank along."""
    (turns,) = asked([DIALOGUE], SampleConfig(one_turn=True, system="Be kind."))
    assert turns == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi HelloWhy?"}]


@given(st.text("ab# \n"))
def test_a_text_without_marks_is_unchanged(text):
    assert one_user_turn(text) == [{"role": "user", "content": text}]


@pytest.mark.parametrize("options", [{"system": "Be kind."}, {"one_turn": True}])
def test_turns_are_for_chat_templates(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} is for layout=chat, and layout=lmflow"):
        sampling_rules(SampleConfig(layout="lmflow", **options))
