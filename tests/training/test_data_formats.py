"""Rows of the kinds that datasets come in."""

import pytest

from trl_xtok.errors import DataError
from trl_xtok.training.dataset_formats import read_completion, read_prompt


USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "Hi", "completion": " there"}, "Hi", " there"),
        ({"prompt": [USER], "completion": [ANSWER]}, [USER], [ANSWER]),
        ({"messages": [USER, ANSWER]}, [USER], [ANSWER]),
        ({"messages": [USER, ANSWER, USER, ANSWER]}, [USER, ANSWER, USER], [ANSWER]),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            [USER],
            [ANSWER],
        ),
        (
            {"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]},
            [USER],
            [ANSWER],
        ),
        ({"conversations": [USER, ANSWER], "id": 3}, [USER], [ANSWER]),
        ({"messages": [USER], "completion": [ANSWER], "conversations": "unread"}, [USER], [ANSWER]),
    ],
)
def test_prompt_and_completion(row, prompt, completion):
    before = repr(row)
    assert read_prompt(row) == prompt
    assert read_completion(row) == completion
    assert repr(row) == before


def test_roles_of_sharegpt():
    turns = [("system", "Be short."), ("human", "2+2?"), ("gpt", "?"), ("observation", "4"), ("gpt", "4")]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    roles = ["system", "user", "assistant", "tool"]
    assert [message["role"] for message in read_prompt(row)] == roles
    assert read_completion(row) == [{"role": "assistant", "content": "4"}]


def test_a_system_column_and_what_are_no_turns():
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    row = {"conversations": turns, "system": "Be short."}
    assert read_prompt(row) == [{"role": "system", "content": "Be short."}, USER]
    for wrong in ('[{"from": "human"}]', ["Hi"], {"from": "human"}):
        with pytest.raises(DataError, match=r"`conversations` is .* must be a list of turns"):
            read_prompt({"conversations": wrong})


@pytest.mark.parametrize("row", [{"prompt": "Hi", "image": "cat.png"}, {"messages": [USER], "images": ["cat.png"]}])
def test_images_are_refused(row):
    with pytest.raises(DataError, match=r"`images?`: .*cat.png.*only text can be aligned"):
        read_prompt(row)


@pytest.mark.parametrize(
    "row", [{"prompt": "Hi"}, {"prompt": [USER]}, {"messages": [USER]}, {"prompt": "Hi", "messages": [USER, ANSWER]}]
)
def test_a_row_without_completion(row):
    with pytest.raises(DataError, match="completions are asked for"):
        read_completion(row)
