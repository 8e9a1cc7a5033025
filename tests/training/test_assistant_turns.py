"""Conversations of several assistant turns: the last one is trained on, or each of them."""

import itertools

import pytest
from datasets import Dataset, IterableDataset

from tests.training.runs import shared_tokenizers
from tests.training.tiny_models import PROMPTS, tiny_args
from trl_xtok.errors import ConfigError, DataError
from trl_xtok.training.dataset_checks import split_datasets
from trl_xtok.training.dataset_formats import find_completion, read_completion, read_prompt, split_turns


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SYSTEM, HI, BYE = message("system", "Be short."), message("user", "Hi"), message("user", "Bye")
HELLO, CIAO = message("assistant", "Hello"), message("assistant", "Ciao")
TOOL = message("tool", "3")
MIXED = [[SYSTEM, HI, HELLO, BYE, CIAO], [HI, HELLO], [HI, HELLO, BYE]]
SPLIT = [
    ([SYSTEM, HI], [HELLO]),
    ([SYSTEM, HI, HELLO, BYE], [CIAO]),
    ([HI], [HELLO]),
    ([HI], [HELLO]),
    ([HI, HELLO, BYE], None),
]


def pairs(rows) -> list:
    return [(read_prompt(row), find_completion(row)) for row in rows]


def of_every_turn(folder, **changes):
    return tiny_args(folder, assistant_turns="all", **changes)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": MIXED[0]}, SPLIT[:2]),
        ({"messages": MIXED[2]}, SPLIT[3:]),
        ({"messages": [HELLO, HI, CIAO]}, [([HELLO, HI], [CIAO])]),
        ({"messages": [HI]}, [([HI], None)]),
        ({"prompt": [HI], "completion": [HELLO]}, [([HI], [HELLO])]),
        ({"prompt": [HI, HELLO, BYE], "completion": [CIAO]}, [([HI, HELLO, BYE], [CIAO])]),
        (
            {"prompt": [HI], "completion": [HELLO, TOOL, CIAO]},
            [([HI], [HELLO]), ([HI, HELLO, TOOL], [CIAO])],
        ),
        ({"prompt": [HI], "completion": None}, [([HI], None)]),
        ({"prompt": "Hi", "completion": "Hello"}, [("Hi", "Hello")]),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                    {"from": "human", "value": "Bye"},
                    {"from": "gpt", "value": "Ciao"},
                ],
                "system": "Be short.",
            },
            SPLIT[:2],
        ),
    ],
)
def test_each_answer_follows_all_that_stands_before_it(row, expected):
    before = repr(row)
    rows = split_turns(row)
    assert pairs(rows) == expected
    assert repr(row) == before
    assert [again for row in rows for again in split_turns(row)] == rows


def test_a_conversation_of_nothing_but_a_greeting_is_refused_when_it_is_read():
    (row,) = split_turns({"messages": [HELLO]})
    with pytest.raises(DataError, match="The prompt is empty"):
        read_prompt(row)


def test_other_columns_go_with_each_turn():
    tools = [{"name": "search"}]
    assert [row["tools"] for row in split_turns({"messages": MIXED[0], "tools": tools})] == [tools, tools]


@pytest.mark.parametrize("streamed", [False, True])
def test_datasets_are_split_row_by_row(tmp_path, streamed):
    dataset = Dataset.from_dict({"messages": MIXED, "id": [1, 2, 3]})
    dataset = dataset.to_iterable_dataset() if streamed else dataset
    split = split_datasets(dataset, of_every_turn(tmp_path))
    assert isinstance(split, IterableDataset if streamed else Dataset)
    assert pairs(split) == SPLIT
    assert [row["id"] for row in split] == [1, 1, 2, 3, 3]
    assert split_datasets(split, of_every_turn(tmp_path)) is split
    assert split_datasets(dataset, tiny_args(tmp_path)) is dataset


def test_a_stream_is_read_no_further_than_needed(tmp_path):
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield {"messages": MIXED[0]}

    stream = split_datasets(IterableDataset.from_generator(endless), of_every_turn(tmp_path))
    assert pairs(itertools.islice(stream, 5)) == [*SPLIT[:2] * 2, SPLIT[0]]
    assert max(read) <= 3


def test_what_has_no_turns_stays_the_same_object(tmp_path):
    plain, chats = Dataset.from_dict({"prompt": ["Hi"]}), Dataset.from_dict({"messages": MIXED})
    args = of_every_turn(tmp_path)
    assert split_datasets(plain, args) is plain
    assert split_datasets(unchanged := {"a": plain}, args) is unchanged
    both = split_datasets({"plain": plain, "chats": chats}, args)
    assert both["plain"] is plain
    assert pairs(both["chats"]) == SPLIT
    assert split_datasets(None, args) is None
    assert split_datasets("chats", args) == "chats"


def test_a_transform_is_not_frozen(tmp_path):
    dataset = Dataset.from_dict({"messages": MIXED}).with_transform(lambda batch: batch)
    with pytest.raises(DataError, match=r"`with_transform`.*Apply it with `Dataset.map`"):
        split_datasets(dataset, of_every_turn(tmp_path))


def test_a_training_set_without_turns_is_refused(make_trainer):
    with pytest.raises(ConfigError, match=r"`assistant_turns='all'` has no effect on `train_dataset`.* are prompt"):
        make_trainer(assistant_turns="all", arguments=shared_tokenizers())


def test_a_later_turn_that_is_too_long_is_found_before_training(make_trainer):
    chats = [[HI, HELLO], [HI, HELLO, message("user", "word " * 200), CIAO]]
    dataset = Dataset.from_dict({"messages": chats})
    where = r"Row 2 of `train_dataset` \(with a row for each assistant turn\)"
    with pytest.raises(DataError, match=where + r": A prompt has 2\d\d student tokens"):
        make_trainer(assistant_turns="all", arguments=shared_tokenizers() | {"train_dataset": dataset})


def conversation(*words: str) -> list[dict[str, str]]:
    return [message(("user", "assistant")[place % 2], word) for place, word in enumerate(words)]


CHATS = [conversation("Hi", "Hello", prompt, "Well") for prompt in PROMPTS[:3]]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_answers_every_turn(make_trainer, streamed):
    dataset = Dataset.from_dict({"messages": CHATS})
    trainer = make_trainer(
        assistant_turns="all",
        max_steps=3,
        train_sampling_strategy="sequential",
        arguments=shared_tokenizers()
        | {"train_dataset": dataset.to_iterable_dataset() if streamed else dataset, "eval_dataset": dataset},
    )
    seen, roll_out = [], trainer._roll_out

    def record(prompts, on_written):
        seen.extend(row[mask.bool()].tolist() for b in prompts
                    for row, mask in zip(b["prompts"], b["prompt_attention_mask"], strict=True))  # fmt: skip
        return roll_out(prompts, on_written)

    trainer._roll_out = record
    expected = [trainer.data_collator.tokenize(chat[:end])[0] for chat in CHATS for end in (1, 3)]
    trainer.train()
    assert seen == expected
    for given in (None, dataset, trainer.eval_dataset):
        seen.clear()
        assert trainer.evaluate(given)["eval_loss"] > float("-inf")
        assert seen == expected


def test_off_policy_every_turn_is_a_completion(make_trainer):
    trainer = make_trainer(
        assistant_turns="all",
        objective="chunk_jsd",
        lmbda=0.0,
        max_steps=3,
        train_sampling_strategy="sequential",
        arguments=shared_tokenizers() | {"train_dataset": Dataset.from_dict({"messages": CHATS})},
    )
    written, read = [], trainer._written
    trainer._written = lambda batches: written.append(completions := read(batches)) or completions
    trainer.train()
    texts = [trainer.processing_class.decode(ids) for batch in written for ids in batch]
    assert texts == ["Hello<|im_end|>", "Well<|im_end|>"] * 3


def test_without_it_the_last_turn_is_read():
    row = {"messages": CHATS[0]}
    assert read_prompt(row) == CHATS[0][:3]
    assert read_completion(row) == CHATS[0][3:]
