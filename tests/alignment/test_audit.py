"""What an audit says of real tokenizers."""

import io
import json
from collections import Counter

import pytest
from rich.console import Console

from tests.alignment.pairs import aligner, tokenizer
from trl_xtok import TokenizerAudit, audit_tokenizers
from trl_xtok.alignment.audit_samples import SAMPLES
from trl_xtok.alignment.audit_table import print_audit
from trl_xtok.alignment.text_audit import ChunkPieces, chunk_pieces
from trl_xtok.errors import DataError


def audit(student: str, teacher: str, **options) -> TokenizerAudit:
    return audit_tokenizers(tokenizer(student), tokenizer(teacher), **options)


@pytest.mark.parametrize(
    ("student", "teacher", "level", "relation"),
    [
        pytest.param("qwen3", "qwen3_base", "same vocabulary", "equal", id="one vocabulary"),
        pytest.param("llama3", "qwen3", "good", "overlap", id="two byte-level vocabularies"),
        pytest.param("smollm2", "mistral1", "good", "overlap", id="byte level and SentencePiece"),
        pytest.param("llama3", "wordpiece", "usable", "overlap", id="a teacher that lower-cases"),
    ],
)
def test_level_and_relation(student, teacher, level, relation):
    found = audit(student, teacher)
    assert (found.level, found.vocabulary.name) == (level, relation)


def test_the_objective_is_what_training_chooses(tmp_path):
    from trl_xtok import CrossTokenizerGKDConfig
    from trl_xtok.training.objective import choose_objective

    args = CrossTokenizerGKDConfig(str(tmp_path))
    for pair in (("qwen3", "qwen3_base"), ("llama3", "qwen3")):
        assert audit(*pair).objective == choose_objective(args, aligner(*pair))


def test_one_vocabulary_points_to_the_trainer_of_trl():
    assert "`DistillationTrainer`" in audit("qwen3", "qwen3_base").verdict


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama3", "ByteLevel BPE"),
        ("mistral1", "SentencePiece BPE with byte fallback"),
        ("jurassic2", "SentencePiece Unigram with byte fallback"),
        ("unigram", "SentencePiece Unigram"),
        ("wordpiece", "WordPiece"),
    ],
)
def test_kind(name, kind):
    assert audit(name, "qwen3", texts={"one": "a"}).student.kind == kind


def test_sides_say_how_a_turn_ends_and_what_is_normalized():
    found = audit("llama3", "jurassic2")
    assert (found.student.end_of_turn, found.student.leading) == ("<|eot_id|>", ())
    assert (found.teacher.normalizers, found.teacher.has_chat_template) == (("Precompiled",), False)
    assert "compatibility characters" in found.teacher.altered
    assert any("has no chat template" in warning for warning in found.warnings)
    assert any("changes texts (Precompiled)" in warning for warning in found.warnings)


def test_counts_are_those_of_the_aligner():
    found = audit("smollm2", "mistral1")
    pair = aligner("smollm2", "mistral1")
    for text in found.samples:
        alignment = pair.align(pair.student_ids(SAMPLES[text.name]))
        assert (text.coverage, text.dropped) == (pytest.approx(alignment.coverage), alignment.dropped)
    assert found.total.dropped == sum((Counter(text.dropped) for text in found.samples), Counter())


def test_the_verdict_is_about_the_texts_that_are_given():
    found = audit("llama3", "wordpiece", texts={"plain": "just some plain words"})
    assert [text.name for text in found.texts] == ["plain"]
    assert (found.total.name, found.level) == ("your texts", "good")


def test_texts_without_text_are_refused():
    with pytest.raises(DataError, match="The 2 given texts are empty"):
        audit("llama3", "qwen3", texts={"a": "", "b": ""})


def test_less_than_min_coverage_is_unusable():
    found = audit("llama3", "wordpiece", min_coverage=0.9)
    assert found.level == "unusable"
    assert "less than `min_coverage=0.9`" in found.verdict


def test_json_has_the_same_keys_whatever_is_found():
    found = audit("qwen3", "qwen3_base"), audit("llama3", "unigram", texts={"x": "déjà"})
    dicts = json.loads(json.dumps([each.to_dict() for each in found]))
    assert dicts[0].keys() == dicts[1].keys()
    assert dicts[0]["samples"][0].keys() == dicts[1]["texts"][0].keys() == dicts[1]["total"].keys()


def test_chunks_stand_side_by_side():
    assert chunk_pieces(tokenizer("llama3"), tokenizer("qwen3"), "in 2024") == [
        ChunkPieces((b"in",), (b"in",), None),
        ChunkPieces((b" ",), (b" ",), None),
        ChunkPieces((b"202",), (b"2", b"0", b"2"), None),
        ChunkPieces((b"4",), (b"4",), None),
    ]


@pytest.mark.parametrize("pair", [("llama3", "unigram"), ("smollm2", "mistral1"), ("qwen3", "wordpiece")])
def test_no_token_is_lost_between_the_chunks(pair):
    for text in SAMPLES.values():
        ids = aligner(*pair).student_ids(text)
        alignment = aligner(*pair).align(ids)
        rows = chunk_pieces(*map(tokenizer, pair), text)
        assert sum(len(row.student) for row in rows) == len(ids)
        assert sum(len(row.teacher) for row in rows) == len(alignment.teacher_ids)
        assert sum(row.reason is None for row in rows) == alignment.num_chunks
        assert Counter(row.reason for row in rows for _ in row.student if row.reason) == alignment.dropped


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_a_terminal(width):
    console = Console(width=width, record=True, file=io.StringIO())
    print_audit(audit("llama3", "unigram", texts={"[bold]x": "déjà vu"}), console)
    text = console.export_text()
    assert "[bold]x" in text
    assert max(map(len, text.splitlines())) <= width
