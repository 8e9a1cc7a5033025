"""Log-probs of packed completions against the plain log-softmax of the model's own logits."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from tests.training.reference import token_logps
from tests.training.tiny_models import tiny_model
from trl_xtok.errors import ModelError
from trl_xtok.training.scoring import causal_lm, check_head, completion_logps, pack


CPU = torch.device("cpu")
VOCAB = 101

# What each family does between hidden states and logits.
HEADS = {
    "plain": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "bias": ("phi", {}),
    "softcap": ("gemma2", {"final_logit_softcapping": 3.0}),
    "softcap, tied embeddings scaled": ("gemma3", {"final_logit_softcapping": 3.0}),
    "factor": ("cohere", {"logit_scale": 0.25}),
    "divisor": ("granite", {"logits_scaling": 4.0}),
}

# Unequal lengths on both sides, one completion without tokens.
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [3, 4]]
COMPLETIONS = [[20, 21], [22, 23, 24, 25, 26], [], [27]]


def build(name: str, **changes):
    family, config = HEADS[name]
    return tiny_model(family, VOCAB, **config | changes)


def with_lora(model, **changes):
    targets = {"target_modules": ["q_proj", "v_proj"]} | changes
    return get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **targets))


def assert_scores_as_logits(model, temperature=1.0):
    """Same values, and same gradients of every trainable parameter."""
    exact = copy.deepcopy(model).double()
    expected = torch.cat([token_logps(exact, p, c, temperature) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    packed = pack(PROMPTS, COMPLETIONS, CPU)
    actual = completion_logps(causal_lm(model), packed, temperature=temperature, block_size=2)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=1e-5)

    upstream = torch.linspace(-1, 1, len(actual))
    actual.backward(upstream)
    expected.backward(upstream.double())
    for (name, parameter), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", HEADS)
def test_full_model_scores_as_its_own_logits_do(name, temperature):
    assert_scores_as_logits(build(name), temperature)


@pytest.mark.parametrize("name", HEADS)
def test_adapter_scores_as_the_logits_of_the_whole_model_do(name):
    assert_scores_as_logits(with_lora(build(name)))


def test_fully_trained_head_of_an_adapter_is_the_one_that_scores():
    model = with_lora(build("plain"), modules_to_save=["lm_head"])
    with torch.no_grad():
        causal_lm(model).get_output_embeddings().weight.mul_(1.5)
    assert_scores_as_logits(model)


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"use_rslora": True}, {"target_modules": "all-linear"}])
def test_adapters_of_other_kinds_score_as_the_logits_of_the_whole_model_do(kind):
    assert_scores_as_logits(with_lora(build("plain"), **kind))


# PEFT unties a tied head without a word in its configuration, unless it is told not to.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    ("where", "is_tied"),
    [
        pytest.param({"modules_to_save": ["lm_head"]}, False, id="head"),
        pytest.param({"modules_to_save": ["embed_tokens"]}, False, id="embedding"),
        pytest.param({"modules_to_save": ["embed_tokens", "lm_head"]}, False, id="both apart"),
        pytest.param({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, True, id="both tied"),
        pytest.param({"target_modules": ["q_proj", "embed_tokens"]}, True, id="LoRA on the embedding"),
    ],
)
@pytest.mark.parametrize("name", ["tied", "softcap, tied embeddings scaled"])
def test_adapter_on_tied_embeddings_scores_as_the_logits_of_the_whole_model_do(name, where, is_tied):
    model = with_lora(build(name), **where)
    if "modules_to_save" in where:
        trained = [parameter for key, parameter in model.named_parameters() if "modules_to_save" in key]
        with torch.no_grad():
            trained[-1].mul_(1.5)
    lm = causal_lm(model)
    assert (lm.get_output_embeddings().weight is lm.get_input_embeddings().weight) == is_tied
    assert_scores_as_logits(model)


@pytest.mark.parametrize(
    "where",
    [
        pytest.param({"target_modules": ["q_proj", "lm_head"]}, id="LoRA on the head"),
        pytest.param({"trainable_token_indices": [1, 2]}, id="trainable rows of a tied head"),
    ],
)
def test_adapter_on_the_head_itself_is_refused(where):
    model = with_lora(build("tied" if "trainable_token_indices" in where else "plain"), **where)
    with pytest.raises(ModelError, match="modules_to_save"):
        completion_logps(causal_lm(model), pack(PROMPTS, COMPLETIONS, CPU))


@pytest.mark.parametrize("name", ["plain", "softcap, tied embeddings scaled"])
def test_neither_padding_nor_company_changes_a_completion(name):
    model = build(name)
    together = completion_logps(model, pack(PROMPTS, COMPLETIONS, CPU))
    packed = pack(PROMPTS, COMPLETIONS, CPU)
    packed["input_ids"] = packed["input_ids"].where(packed["attention_mask"] == 1, 77)
    other_pad = completion_logps(model, packed)
    wider = completion_logps(model, pack([*PROMPTS, [1] * 30], [*COMPLETIONS, []], CPU))
    alone = [completion_logps(model, pack([p], [c], CPU)) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    torch.testing.assert_close(other_pad, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(wider, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=0)


def test_completions_without_tokens_score_nothing_and_can_be_differentiated():
    model = build("plain")
    logps = completion_logps(model, pack([[5], [6, 7]], [[], []], CPU))
    assert logps.shape == (0,)
    logps.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_known_heads_pass_the_check(name):
    model = build(name)
    check_head(model, "teacher")
    assert not model.training


class Louder(LlamaForCausalLM):
    """Multiplies its logits by a factor that no configuration field tells."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = 1.5 * outputs.logits
        return outputs


def test_model_that_changes_its_logits_after_the_head_is_refused():
    model = Louder(build("plain").config).eval()
    with pytest.raises(ModelError, match=r"The teacher \(Louder\)"):
        check_head(model, "teacher")


def test_trainer_refuses_such_a_teacher(make_trainer, same_tokenizer_teacher_path):
    teacher = Louder.from_pretrained(same_tokenizer_teacher_path)
    with pytest.raises(ModelError, match="Louder"):
        make_trainer(teacher=teacher)
