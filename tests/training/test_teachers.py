"""Teachers: how they are loaded, and what they answer where they cannot say."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from tests import real_tokenizers
from tests.training.runs import PACKABLE
from tests.training.tiny_models import save, tiny_args, tiny_model
from trl_xtok.errors import ModelError
from trl_xtok.training.teachers import LocalTeacher, load_teacher


@pytest.fixture(scope="module")
def packable_path(tmp_path_factory) -> str:
    model = tiny_model("llama", 32000, seed=5, **PACKABLE)
    return save(model, real_tokenizers.mistral1(), tmp_path_factory.mktemp("packable"))


@pytest.fixture
def loaded(tmp_path, packable_path):
    return lambda **changes: load_teacher(packable_path, tiny_args(tmp_path, **changes))


def layers_of(model, kind) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def test_a_teacher_takes_the_precision_of_the_run(loaded):
    assert loaded().dtype == torch.float32
    assert loaded(bf16=True).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_teacher_takes_the_precision_it_is_given(loaded, dtype):
    assert loaded(teacher_model_init_kwargs={"dtype": dtype}).dtype == torch.bfloat16


def test_arguments_for_loading_need_no_precision(loaded):
    """GKD fails with a KeyError here."""
    model = loaded(teacher_model_init_kwargs={"attn_implementation": "eager"})
    assert (model.config._attn_implementation, model.dtype) == ("eager", torch.float32)


def test_arguments_for_loading_are_not_changed(loaded, tmp_path, packable_path):
    args = tiny_args(tmp_path, teacher_model_init_kwargs={"attn_implementation": "eager"}, load_teacher_in_4bit=True)
    load_teacher(packable_path, args)
    assert args.teacher_model_init_kwargs == {"attn_implementation": "eager"}


@pytest.mark.parametrize(
    ("asked", "compute_dtype"),
    [
        ({"load_teacher_in_4bit": True}, torch.float32),
        ({"load_teacher_in_4bit": True, "bf16": True}, torch.bfloat16),
        (
            {"teacher_quantization_config": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}},
            torch.bfloat16,
        ),
        ({"teacher_quantization_config": '{"load_in_4bit": true}'}, torch.float32),
    ],
    ids=["flag", "flag and bf16", "dictionary", "JSON"],
)
def test_four_bit_means_four_bit(loaded, asked, compute_dtype):
    model = loaded(**asked)
    assert len(layers_of(model, Linear4bit)) == 2 * 7, "all projections of both layers"
    assert model.get_output_embeddings().weight.is_floating_point()
    layer = model.model.layers[0].mlp.down_proj
    assert layer.weight.dtype == torch.uint8
    assert layer.compute_dtype == compute_dtype


def test_the_flag_means_normal_floats(loaded):
    assert loaded(load_teacher_in_4bit=True).model.layers[0].mlp.down_proj.weight.quant_type == "nf4"


def test_eight_bits_can_be_asked_for(loaded):
    assert layers_of(loaded(teacher_quantization_config={"load_in_8bit": True}), Linear8bitLt)


def test_what_cannot_be_loaded_says_with_which_arguments(tmp_path, packable_path):
    args = tiny_args(tmp_path, teacher_model_init_kwargs={"no_such_argument": 1})
    with pytest.raises(
        ModelError, match=r"The teacher '.*' cannot be loaded with .*'no_such_argument': 1.*unexpected"
    ):
        load_teacher(packable_path, args)


def test_a_loaded_teacher_is_taken_as_it_is(load, packable_path, tmp_path):
    model = load(packable_path).to(torch.bfloat16).train()
    assert load_teacher(model, tiny_args(tmp_path)) is model
    assert LocalTeacher(model, tiny_args(tmp_path)).model.dtype == torch.bfloat16
    assert not model.training, "dropout would make the scores random"


@pytest.fixture
def short_teacher(tmp_path) -> LocalTeacher:
    return LocalTeacher(tiny_model("llama", 300, max_position_embeddings=8), tiny_args(tmp_path))


def test_a_teacher_answers_for_each_token_of_each_completion(short_teacher):
    logps = short_teacher.token_logps([[1], [2, 3]], [[4, 5, 6], []])
    assert logps.shape == (3,)
    assert (logps < 0).all()
    assert not logps.requires_grad


def test_what_lies_beyond_the_context_is_unknown_and_the_rest_is_not(short_teacher):
    prompts, completions = [[1, 2, 3, 4, 5, 6], [1]], [[7, 8, 9, 10], [11, 12]]
    logps = short_teacher.token_logps(prompts, completions)
    assert logps.isnan().tolist() == [False, False, True, True, False, False]
    kept = short_teacher.token_logps(prompts, [[7, 8], [11, 12]])
    torch.testing.assert_close(logps[~logps.isnan()], kept)


def test_a_prompt_as_long_as_the_context_leaves_nothing_to_score(short_teacher):
    logps = short_teacher.token_logps([[1] * 8, [1]], [[2, 3], [4]])
    assert logps.isnan().tolist() == [True, True, False]


def test_a_context_of_unknown_length_is_not_cut(tmp_path):
    model = tiny_model("llama", 300)
    teacher = LocalTeacher(model, tiny_args(tmp_path))
    assert teacher.reach.context == 256
    teacher.reach = teacher.reach._replace(context=None)
    assert not teacher.token_logps([[1] * 4], [[2] * 6]).isnan().any()
