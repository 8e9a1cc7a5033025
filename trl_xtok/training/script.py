"""What `trl-xtok gkd` does with its arguments, as TRL's scripts do: from names to a saved student."""

from transformers import BitsAndBytesConfig
from trl.trainer.model_config import ModelConfig
from trl.trainer.utils import get_peft_config, get_quantization_config

from ..errors import ConfigError, XTokError
from .script_arguments import Arguments
from .script_data import is_local, load_datasets
from .trainer import CrossTokenizerGKDTrainer


# How `--resume_from_checkpoint` asks for the last checkpoint: a flag has a value.
_LAST = ("true", "last", "latest")


def train(arguments: Arguments) -> None:
    """Train as the arguments say, save the student with its model card, and push it if asked to."""
    args = arguments.training
    trainer = make_trainer(arguments)
    trainer.train()
    trainer.accelerator.print("Training completed.")
    trainer.save_model(args.output_dir)
    dataset = _public_name(arguments)
    trainer.create_model_card(dataset_name=dataset)
    trainer.accelerator.print(f"Model saved to {args.output_dir}.")
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset)
        trainer.accelerator.print(f"Model pushed to the Hub in https://huggingface.co/{trainer.hub_model_id}.")
    # Trackers are closed, and other processes let go.
    trainer.end()


def make_trainer(arguments: Arguments) -> CrossTokenizerGKDTrainer:
    """The trainer that the arguments ask for.

    Raises:
        XTokError: Whatever the trainer refuses, and datasets that cannot be loaded.
    """
    resolve(arguments)
    quantization_config = student_quantization(arguments.model)
    train_dataset, eval_dataset = load_datasets(arguments)
    try:
        return CrossTokenizerGKDTrainer(
            model=arguments.model.model_name_or_path,
            args=arguments.training,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=get_peft_config(arguments.model),
            quantization_config=quantization_config,
        )
    except XTokError:
        raise
    except (ImportError, OSError, ValueError) as error:
        # What transformers, TRL and PEFT refuse: an attention, a tracker or a repository that is not there.
        raise ConfigError(f"The trainer cannot be made of these arguments: {error}") from error


def resolve(arguments: Arguments) -> None:
    """Write what the student's flags say into the training arguments.

    Raises:
        ConfigError: If `--model_init_kwargs` say otherwise.
    """
    model, args = arguments.model, arguments.training
    flags = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        "trust_remote_code": args.trust_remote_code,
    }
    given = args.model_init_kwargs or {}
    of = {"revision": "model_revision"}
    for name in flags.keys() & given.keys() - {"trust_remote_code"}:
        flag = of.get(name, name)
        if flags[name] not in (given[name], ModelConfig.__dataclass_fields__[flag].default):
            raise ConfigError(
                f"`--{flag} {flags[name]}` and `--model_init_kwargs` with {name}={given[name]!r} contradict each "
                "other. Keep one of them."
            )
    args.model_init_kwargs = {**flags, **given}
    modules = model.lora_target_modules
    if isinstance(modules, str) and modules.isidentifier():
        # TRL makes text of a single name, which PEFT reads as a pattern for whole paths.
        model.lora_target_modules = [modules]
    if str(args.resume_from_checkpoint).lower() in _LAST:
        args.resume_from_checkpoint = True


def student_quantization(model: ModelConfig) -> BitsAndBytesConfig | None:
    """How the student is quantized, if it is.

    Raises:
        ConfigError: If the precision to compute in is left open, or there would be nothing to train.
    """
    if not (model.load_in_4bit or model.load_in_8bit):
        return None
    bits = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
    if not model.use_peft:
        raise ConfigError(f"`--{bits}` without `--use_peft` leaves nothing to train. Set both, or neither.")
    if model.load_in_4bit and model.dtype == "auto":
        raise ConfigError(
            "`--dtype auto` leaves open the precision that a 4-bit student computes in. Give `--dtype float16`, "
            "bfloat16 or float32."
        )
    return get_quantization_config(model)


def _public_name(arguments: Arguments) -> str | None:
    """The dataset's name for the model card; none of a mixture, or of a file."""
    name = arguments.script.dataset_name
    return None if name is None or is_local(name) else name
