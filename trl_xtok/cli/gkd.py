"""`trl-xtok gkd`: train from the command line, on one device or on several through Accelerate.

Arguments that neither the training nor the models know are Accelerate's, as in `trl`. One process trains right here;
for more, Accelerate starts this command again in each of them.
"""

import argparse
import os
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .arguments import did_you_mean
from .config_file import read_config_file
from .notices import quiet_notices


if TYPE_CHECKING:
    from ..training.script_arguments import GKDParser

PROG = "trl-xtok gkd"
# What Accelerate or torchrun have set where they started this process.
_SET_BY_LAUNCHERS = {"ACCELERATE_DYNAMO_BACKEND", "LOCAL_RANK"}
_SCRIPT = "a script"


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `trl-xtok`, without its arguments."""
    parser = commands.add_parser("gkd", help="distil a teacher into a student", add_help=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train with the arguments in `args.raw`, or show the help."""
    argv, config = read_config_file(args.raw)
    # Before torch and the Hub are imported, which read some of them only then.
    os.environ.update({name: str(value) for name, value in config.get("env", {}).items()})
    quiet_notices()
    from ..training.script_arguments import GKDParser

    parser = GKDParser(PROG)
    if {"-h", "--help"} & {*argv}:
        from .gkd_help import help_page

        print(help_page(parser))
        return 0
    arguments = parser.read(argv)
    launch = _Launch(parser, arguments.unknown_in_config, arguments.unknown)
    if arguments.script.dry_run:
        from .dry_run import dry_run

        launch.check()
        dry_run(arguments)
        return 0
    if launch.is_needed():
        return launch.start(argv)
    from ..training.script import train

    train(arguments)
    return 0


class _Launch:
    """How Accelerate is to start the training.

    Args:
        parser: Knows all other arguments.
        in_config: What it did not know of the configuration file, as arguments.
        given: What it did not know of the command line.
    """

    def __init__(self, parser: "GKDParser", in_config: Sequence[str], given: Sequence[str]):
        from accelerate.commands.launch import launch_command_parser

        from ..training.trl_compat import resolve_accelerate_config_argument

        self._launcher = launch_command_parser()
        # Its usage is longer than a screen.
        self._launcher.exit_on_error = False
        self._parser = parser
        try:
            of_config, of_command = map(resolve_accelerate_config_argument, (_without_true(in_config), [*given]))
        except ValueError as error:
            parser.error(f"{error} Of its names, single_gpu, multi_gpu, fsdp2, zero1 and zero2 can be used here.")
        self._check(of_config, "configuration file: unknown key", "")
        self._check(of_command, "unknown argument", "--")
        self.args = [*of_config, *of_command]

    def _check(self, args: Sequence[str], what: str, prefix: str) -> None:
        """Leave if Accelerate does not know all of these either."""
        try:
            parsed, unknown = self._launcher.parse_known_args([*args, _SCRIPT])
        except argparse.ArgumentError as error:
            self._parser.error(str(error))
        if parsed.num_processes is not None and parsed.num_processes < 1:
            self._parser.error(f"--num_processes must be at least 1, got {parsed.num_processes}.")
        if not unknown and parsed.training_script == _SCRIPT:
            return
        name = (unknown or [parsed.training_script])[0].partition("=")[0]
        flags = [*self._parser.flags(), "--config", "--accelerate_config", *(f"--{known}" for known in vars(parsed))]
        if name.startswith("-"):
            hint = did_you_mean(name, flags, prefix)
        else:
            hint = " The flag before it takes no more values; a configuration file is `--config FILE`."
        self._parser.error(f"{what} {name.removeprefix('--' if not prefix else '')!r}.{hint}")

    def is_needed(self) -> bool:
        """Whether the training is to run in other processes than this one, which no launcher has started."""
        if _SET_BY_LAUNCHERS & os.environ.keys():
            return False
        from accelerate.commands.config import default_config_file
        from torch import accelerator

        return bool(self.args) or os.path.isfile(default_config_file) or accelerator.device_count() > 1

    def check(self) -> None:
        """Refuse a launch that would end in an error in each process, after a minute and several times over.

        Raises:
            ConfigError: If it would.
        """
        try:
            _refuse_sharding(self._launcher.parse_args([*self.args, _SCRIPT]))
        except ConfigError:
            raise
        except ValueError as error:
            raise _cannot_launch(error) from error

    def start(self, argv: Sequence[str]) -> int:
        """Start the processes and wait for them; the exit status of the first that failed."""
        from accelerate.commands.launch import launch_command
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        self.check()
        args = self._launcher.parse_args([*self.args, "--module", "trl_xtok.cli", "gkd", *argv])
        try:
            launch_command(args)
        except subprocess.CalledProcessError as error:
            return error.returncode
        except ChildFailedError as error:
            return max(error.get_first_failure()[1].exitcode, 1)
        except ValueError as error:
            raise _cannot_launch(error) from error
        return 0


def _cannot_launch(error: ValueError) -> ConfigError:
    return ConfigError(f"Accelerate cannot launch the run: {error}")


def _without_true(args: Sequence[str]) -> list[str]:
    """The arguments of a configuration file, where switches have a value, as the command line has them."""
    pairs = zip(args[::2], args[1::2], strict=True)
    return [part for flag, value in pairs if value != "False" for part in (flag, value) if part != "True"]


def _refuse_sharding(args: argparse.Namespace) -> None:
    """Refuse what the trainer would refuse."""
    from accelerate.commands.config import load_config_from_file

    from ..training.launch import check_fsdp_version, check_zero_stage

    config = vars(load_config_from_file(args.config_file)) if args.config_file else {}
    kind = config["distributed_type"].value if config else ""
    if args.use_deepspeed or kind == "DEEPSPEED":
        check_zero_stage(args.zero_stage if args.use_deepspeed else config["deepspeed_config"].get("zero_stage", 0))
    if args.use_fsdp or kind == "FSDP":
        check_fsdp_version(args.fsdp_version if args.use_fsdp else config["fsdp_config"].get("fsdp_version", 1))
