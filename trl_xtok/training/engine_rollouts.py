"""Rollouts from vLLM: the engine gets the student's weights, samples, and is checked against the student.

`ServerRollouts` needs no vLLM here: it speaks to a server and has it read the weights from a folder. `TRLRollouts` is
TRL's own way, over NCCL or with an engine in the processes of the trainer.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ServerError
from ..serving.completions import CompletionServer, SampledCompletion, Sampling
from ..serving.server import VLLMServer
from .config import CrossTokenizerGKDConfig
from .metrics import RunMetrics
from .processes import failing_together, true_of_any
from .rollouts import OnWritten, end_ids
from .scoring import causal_lm, completion_logps, in_forward, pack
from .served_student import refuse_quantized, saved_for_server
from .trl_compat import VLLMGeneration


# Mean difference of log-probs between engine and trainer, in nats. What both compute in float32 differs by rounding;
# half precision is rounded otherwise by every implementation.
_TOLERANCE, _HALF_TOLERANCE = 0.01, 0.2
_FOLDER = "vllm_weights"
# How often the completions of one batch are sampled by a server that loses the weights each time.
_ATTEMPTS = 3
_logger = logging.getLogger(__name__)


class EngineRollouts(ABC):
    """Has an engine sample completions with the student's weights.

    Args:
        args: The training arguments.
        accelerator: Knows the other ranks, on which all methods are to be called, too.
    """

    def __init__(self, args: CrossTokenizerGKDConfig, accelerator: Accelerator):
        self._args, self._accelerator = args, accelerator
        self._sampled_from_student = False

    def generate(
        self,
        student: nn.Module,
        prompts: Sequence[Sequence[int]],
        metrics: RunMetrics,
        *,
        new_weights: bool,
        on_written: OnWritten,
    ) -> list[list[int]]:
        """Sample one completion for each prompt.

        Args:
            student: The model, unwrapped, with its adapter if it has one.
            prompts: Token ids of each prompt.
            metrics: Take what it cost, and by how much the engine's log-probs differ from the student's.
            new_weights: Whether the student may have changed since the last call.
            on_written: Is given each completion when it is there, by the place of its prompt; once more if it had to
                be sampled again.

        Returns:
            The ids exactly as sampled, the stop token included if one was.

        Raises:
            ServerError: If the server does not do what it is asked to, or does not sample from the student.
        """
        # The caller has seeded the generator with the step and the rank.
        seeds = torch.randint(2**63 - 1, (len(prompts),)).tolist()
        for attempt in range(_ATTEMPTS):
            sent = new_weights or attempt > 0
            if sent:
                self._sync(student, metrics)
            # Nobody sends new weights before all have their completions.
            with failing_together("has no completions from the engine"):
                completions = self._sample(prompts, seeds, on_written)
            if not true_of_any(self._was_interrupted()):
                with failing_together("has completions that are not the student's"):
                    differences, error = self._check(student, prompts, completions) if completions else ([], None)
                    # Weights may be lost without a word. An engine that never had the right ones is another matter.
                    may_have_lost_them = not sent or (self._sampled_from_student and attempt < _ATTEMPTS - 1)
                    if error is not None and not may_have_lost_them:
                        raise error
                if not true_of_any(error is not None):
                    metrics.add_differences(differences)
                    self._sampled_from_student = True
                    break
            if self._accelerator.is_main_process:
                _logger.warning(
                    "The engine was interrupted or started again, and may have lost the student's weights. They are "
                    "sent once more, and all completions of this batch sampled again."
                )
        else:
            raise ServerError(
                f"{self._args.vllm_url} was interrupted in each of {_ATTEMPTS} attempts to sample the completions of "
                "one batch, so some of them may not be the student's. Its own log says why it does not stay up."
            )
        return [completion.ids for completion in completions]

    def _sync(self, student: nn.Module, metrics: RunMetrics) -> None:
        start = time.perf_counter()
        with failing_together("could not give the engine its weights"):
            self._send_weights(student)
        metrics.add({"weight_syncs": 1.0, "time_weight_sync": time.perf_counter() - start})

    @abstractmethod
    def _send_weights(self, student: nn.Module) -> None:
        """Give the engine the weights of the student."""

    @abstractmethod
    def _sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], on_written: OnWritten
    ) -> list[SampledCompletion]:
        """One completion for each prompt, drawn with its seed if the engine takes one."""

    def _was_interrupted(self) -> bool:
        """Whether the engine may have lost the weights of the student since they were sent, as seen from here."""
        return False

    def _check(
        self,
        student: nn.Module,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[SampledCompletion],
    ) -> tuple[list[float], ServerError | None]:
        """By how much log-probs of the longest completion differ from the student's; what is wrong if they do."""
        row = max(range(len(completions)), key=lambda place: len(completions[place].ids))
        sampled = completions[row]
        own = self._own_logps(student, prompts[row], sampled.ids)
        differences = [abs(a - b) for a, b in zip(own, sampled.logps, strict=True)]
        is_exact = causal_lm(student).dtype == torch.float32 and self._accelerator.mixed_precision == "no"
        tolerance = _TOLERANCE if is_exact else _HALF_TOLERANCE
        mean = sum(differences) / len(differences)
        # What is no number is not smaller, either.
        if mean <= tolerance:
            return differences, None
        return differences, ServerError(
            f"The engine does not sample from the student: after it got the weights, its log-probs of the "
            f"{len(differences)} tokens of a completion differ from the student's by {mean:.3g} nats on average "
            f"and by {max(differences):.3g} at most; {tolerance} on average is allowed. It may serve another "
            "model, compute in another precision (`--dtype`), lack `--logprobs-mode processed_logprobs` at a "
            "temperature other than 1, quantize the model, or have kept an old output head (tied embeddings)."
        )

    @torch.no_grad()
    def _own_logps(self, student: nn.Module, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        packed = pack([prompt], [completion], self._args.device)
        scoring = {**self._args.scoring, "temperature": self._args.temperature}
        training = student.training
        student.eval()
        logps = in_forward(student, self._accelerator, partial(completion_logps, packed=packed, **scoring))
        student.train(training)
        return logps.tolist()


class ServerRollouts(EngineRollouts):
    """Has a vLLM server sample, which reads the weights from a folder.

    Raises:
        ModelError: If the student is quantized.
        ServerError: If there is no server.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        generation_config: GenerationConfig,
        args: CrossTokenizerGKDConfig,
        accelerator: Accelerator,
    ):
        super().__init__(args, accelerator)
        refuse_quantized(student)
        sampling = Sampling(
            args.temperature,
            args.max_new_tokens,
            end_ids(generation_config),
            student.config.get_text_config().vocab_size,
        )
        # A completion may take long, and is not asked for a second time while it is being written.
        seconds = args.vllm_server_timeout
        server = VLLMServer(args.vllm_url, timeout=seconds, deadline=seconds)
        self._server = CompletionServer(server, sampling, requests=args.generation_batch_size)
        self._folder = Path(args.vllm_weight_sync_dir or Path(args.output_dir, _FOLDER)).absolute()

    def _send_weights(self, student: nn.Module) -> None:
        if self._accelerator.is_main_process:
            with saved_for_server(student, self._folder) as folder:
                self._server.reload(folder)
        else:
            self._server.start_over()

    def _sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], on_written: OnWritten
    ) -> list[SampledCompletion]:
        return self._server.sample(prompts, seeds, lambda place, completion: on_written({place: completion.ids}))

    def _was_interrupted(self) -> bool:
        return self._server.was_interrupted


class TRLRollouts(EngineRollouts):
    """Samples with TRL's own `VLLMGeneration`: a server that gets the weights over NCCL, or an engine on each device.

    Not run on real hardware. The engine draws from random numbers of its own, so a resumed run draws others.
    """

    def __init__(
        self,
        student: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        generation_config: GenerationConfig,
        args: CrossTokenizerGKDConfig,
        accelerator: Accelerator,
    ):
        super().__init__(args, accelerator)
        window = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self._engine = VLLMGeneration(
            model=student,
            accelerator=accelerator,
            processing_class=tokenizer,
            mode=args.vllm_mode,
            server_base_url=args.vllm_server_base_url,
            server_host=args.vllm_server_host,
            server_port=args.vllm_server_port,
            server_timeout=args.vllm_server_timeout,
            group_port=args.vllm_group_port,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_length=args.vllm_max_model_length,
            max_num_seqs=window * args.vllm_tensor_parallel_size,
            enable_sleep_mode=args.vllm_enable_sleep_mode,
            model_impl=args.vllm_model_impl,
            trust_remote_code=args.trust_remote_code,
            temperature=args.temperature,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
            max_completion_length=args.max_new_tokens,
            logprobs=0,
            generation_kwargs={"stop_token_ids": sorted(end_ids(generation_config)), "ignore_eos": True},
        )

    def _send_weights(self, student: nn.Module) -> None:
        self._engine.sync_weights()

    def _sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], on_written: OnWritten
    ) -> list[SampledCompletion]:
        rows = [list(prompt) for prompt in prompts]
        _, completions, logps, _ = self._engine.generate(prompts=rows, images=None, num_generations=1)
        return [
            # One log-prob for each token, that of the sampled one; TRL has `None` for what is no number.
            SampledCompletion(list(ids), [float("nan") if value is None else value for (value,) in row])
            for ids, row in zip(completions, logps, strict=True)
        ]


def make_engine(
    student: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    generation_config: GenerationConfig,
    args: CrossTokenizerGKDConfig,
    accelerator: Accelerator,
) -> EngineRollouts | None:
    """The engine that `args` ask for; `None` if the student samples with `generate`."""
    if not args.use_vllm:
        return None
    if args.reloads_weights:
        return ServerRollouts(causal_lm(student), generation_config, args, accelerator)
    return TRLRollouts(student, tokenizer, generation_config, args, accelerator)
