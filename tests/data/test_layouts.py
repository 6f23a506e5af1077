"""Layouts and conversations: which text becomes instruction, input and response."""

from __future__ import annotations

import pytest

from selectit_dagster.data.fields import Unusable
from selectit_dagster.data.layouts import choose_layout
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import DatasetSection


def detected(*records, **options):
    section = DatasetSection(path="x", **options)
    layout = choose_layout(section, list(records), "x")
    return layout.name, [layout.extract(record) for record in records]


def talk(*turns, key="conversations", role="from", text="value"):
    return {key: [{role: speaker, text: words} for speaker, words in turns]}


LONG = talk(
    ("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2"), ("human", "q3"), ("gpt", "a3")
)


@pytest.mark.parametrize(
    ("record", "layout", "expected"),
    [
        ({"instruction": "i", "input": "n", "output": "o"}, "alpaca", ("i", "n", "o", 1)),
        ({"instruction": "i", "output": "o"}, "alpaca", ("i", "", "o", 1)),
        ({"instruction": "i", "input": None, "output": "o"}, "alpaca", ("i", "", "o", 1)),
        ({"instruction": "i", "context": "c", "response": "r"}, "columns", ("i", "c", "r", 1)),
        ({"prompt": "p", "completion": "c"}, "columns", ("p", "", "c", 1)),
        ({"question": "q", "answer": "a"}, "columns", ("q", "", "a", 1)),
        (talk(("human", "q"), ("gpt", "a")), "sharegpt", ("q", "", "a", 1)),
        (
            talk(("user", "q"), ("assistant", "a"), key="messages", role="role", text="content"),
            "messages",
            ("q", "", "a", 1),
        ),
        (
            talk(("user", "q"), ("assistant", "a"), role="role", text="content"),
            "sharegpt",
            ("q", "", "a", 1),
        ),
    ],
)
def test_the_layout_shows_in_the_records(record, layout, expected):
    assert detected(record) == (layout, [expected])


@pytest.mark.parametrize(
    ("turns", "instruction", "response"),
    [
        ("first-turn", "q1", "a1"),
        ("last-turn", "q3", "a3"),
        ("whole", "User: q1\nAssistant: a1\nUser: q2\nAssistant: a2\nUser: q3", "a3"),
    ],
)
def test_a_conversation_becomes_one_record_by_the_named_choice(turns, instruction, response):
    assert detected(LONG, turns=turns)[1] == [(instruction, "", response, 3)]


def test_a_conversation_by_columns_is_the_same_conversation():
    record = {"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}
    assert detected(record) == ("sharegpt", [("q", "", "a", 1)])
    record["conversations"]["value"].append("more")
    with pytest.raises(Unusable, match="is an object, expected a list of messages"):
        detected(record)


def test_what_comes_after_the_last_answer_is_left_out():
    record = talk(("human", "q"), ("gpt", "a"), ("human", "thanks"))
    assert detected(record)[1] == [("q", "", "a", 1)]


def test_other_roles_are_rejected_or_kept_as_text():
    record = talk(("human", "q"), ("observation", "42"), ("gpt", "a"))
    with pytest.raises(Unusable, match="'observation', neither user nor assistant"):
        detected(record)
    kept = detected(record, other_roles="keep")[1][0]
    assert kept[0] == "User: q\nObservation: 42"


def test_a_system_message_belongs_to_the_record_in_every_choice_of_turns():
    record = talk(
        ("system", "Be brief."), *[(m["from"], m["value"]) for m in LONG["conversations"]]
    )
    assert detected(record, turns="last-turn")[1][0][0] == "System: Be brief.\nUser: q3"
    assert detected(record, turns="first-turn")[1][0][0] == "System: Be brief.\nUser: q1"


def test_a_call_of_a_tool_is_an_answer_and_the_last_one_is_rated():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    user = {"role": "user", "content": "q"}
    answer = {"role": "assistant", "content": "a"}
    keep = {"other_roles": "keep"}
    assert detected({"messages": [user, call, answer]}, **keep)[1][0][:3] == (
        'User: q\nTool calls: [{"name": "f"}]',
        "",
        "a",
    )
    assert detected({"messages": [user, answer, user, call]})[1][0][2] == '[{"name": "f"}]'
    spoken = {**call, "content": "Let me look."}
    assert detected({"messages": [user, spoken]})[1][0][2] == 'Let me look.\n[{"name": "f"}]'


def test_text_parts_are_joined_and_other_parts_refused():
    parts = [{"type": "text", "text": "q1"}, {"type": "text", "text": "q2"}]
    record = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]
    }
    assert detected(record)[1][0][0] == "q1\nq2"
    parts.append({"type": "image_url", "image_url": {}})
    with pytest.raises(Unusable, match="image_url, expected a text part"):
        detected(record)


@pytest.mark.parametrize(
    ("record", "field", "reason"),
    [
        ({"instruction": 5, "output": "o"}, "instruction", "is a number, expected text"),
        ({"instruction": "i", "output": None}, "output", "is null"),
        ({"instruction": "i"}, "output", "is missing"),
        ({"instruction": " \u200b\n", "output": "o"}, "instruction", "is blank"),
        ({"instruction": "i", "input": ["x"], "output": "o"}, "input", "is a list, expected text"),
    ],
)
def test_a_record_that_cannot_be_used_names_field_and_reason(record, field, reason):
    with pytest.raises(Unusable) as caught:
        detected(record, layout="alpaca")
    assert (caught.value.field, caught.value.reason) == (field, reason)


@pytest.mark.parametrize(
    ("messages", "field", "reason"),
    [
        (None, "conversations", "is null"),
        ("text", "conversations", "is a str, expected a list of messages"),
        ([], "conversations", "is an empty list"),
        ([None], "conversations[0]", "is null, expected a message"),
        ([{"value": "q"}], "conversations[0].role", "is missing"),
        ([{"from": 3, "value": "q"}], "conversations[0].from", "is a number, expected text"),
        ([{"from": "", "value": "q"}], "conversations[0].from", "is blank"),
        ([{"from": " ", "value": "q"}], "conversations[0].from", "is blank"),
        ([{"from": "human", "value": None}], "conversations[0].value", "is null"),
        ([{"from": "gpt", "value": "a"}], "conversations", "has no message by the user"),
        ([{"from": "human", "value": "q"}], "conversations", "has no answer to the user"),
        (
            [{"from": "human", "value": " "}, {"from": "gpt", "value": "a"}],
            "conversations",
            "has a blank instruction",
        ),
    ],
)
def test_a_broken_conversation_names_the_message(messages, field, reason):
    with pytest.raises(Unusable) as caught:
        detected({"conversations": messages}, layout="sharegpt")
    assert (caught.value.field, caught.value.reason) == (field, reason)


def test_unknown_columns_are_listed():
    with pytest.raises(UserError, match=r"columns found: foo, text") as caught:
        detected({"text": "x", "foo": "y"})
    assert "dataset.columns" in caught.value.hint


def test_a_mapping_to_a_missing_column_is_refused_before_reading_on():
    with pytest.raises(UserError, match=r"names the column 'reply', but .* have: answer, ask"):
        detected({"ask": "x", "answer": "y"}, columns={"instruction": "ask", "response": "reply"})


def test_blank_messages_make_a_blank_instruction():
    record = talk(("human", " "), ("gpt", "\u200b"), ("human", ""), ("gpt", "a"))
    with pytest.raises(Unusable, match="has a blank instruction"):
        detected(record)


def test_a_typed_table_may_hold_the_other_names_as_nulls():
    turns = [("user", "q"), ("assistant", "a")]
    messages = [
        {"from": None, "value": None, "role": role, "content": text} for role, text in turns
    ]
    assert detected({"messages": messages})[1] == [("q", "", "a", 1)]
