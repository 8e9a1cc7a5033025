"""The shape of the package: what may import what, and how long a file and a function may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "trl_xtok"

# Data flows down this page: a module imports only what stands above it.
LAYERS = [
    "errors",
    "sources",
    "alignment.token_bytes",
    "alignment.chunks",
    "alignment.normalization",
    "alignment.spelling",
    "alignment.text_encoder",
    "alignment.vocab_map",
    "alignment.lookahead",
    "alignment.templates",
    "alignment.completions",
    "alignment.aligner",
    "alignment.audit_samples",
    "alignment.audit_sides",
    "alignment.text_audit",
    "alignment.audit_verdict",
    "alignment.audit",
    "alignment.audit_table",
    "objectives.torch_logps",
    "objectives.liger_logps",
    "objectives.logps",
    "objectives.chunk_ops",
    "objectives.credit",
    "objectives.token_sets",
    "objectives.losses",
    "objectives.event_map",
    "objectives.liger_jsd",
    "objectives.jsd_block",
    "objectives.vocab_jsd",
    "serving.server",
    "serving.replicas",
    "serving.completions",
    "serving.models",
    "serving.replies",
    "serving.score_cache",
    "serving.scores",
    "planning.live_memory",
    "planning.gpus",
    "planning.models",
    "planning.shards",
    "planning.phases",
    "planning.run_spec",
    "planning.plan",
    "planning.plan_table",
    "training.trl_compat",
    "training.processes",
    "training.checkpoints",
    "training.config_checks",
    "training.config_numbers",
    "training.config_values",
    "training.engine_arguments",
    "training.best_metric",
    "training.server_arguments",
    "training.config",
    "training.dataset_formats",
    "training.launch",
    "training.data",
    "training.loading",
    "training.memory",
    "training.rollouts",
    "training.scoring",
    "training.vocab_comparison",
    "training.served_teacher",
    "training.selection",
    "training.window",
    "training.teachers",
    "training.off_policy",
    "training.lookahead",
    "training.segmentation",
    "training.sharding",
    "training.dataset_checks",
    "training.setup",
    "training.several_teachers",
    "training.advantages",
    "training.objective",
    "training.metrics",
    "training.aligning",
    "training.served_student",
    "training.engine_rollouts",
    "training.guards",
    "training.completion_log",
    "training.chunk_log",
    "training.run_log",
    "training.evaluation",
    "training.model_card",
    "training.run_history",
    "training.step",
    "training.trainer",
    "training.script_arguments",
    "training.script_data",
    "training.script",
    "training.dry_run",
    "report.page",
    "report.audit_page",
    "report.words",
    "report.run",
    "report.curves",
    "report.chart_svg",
    "report.credit",
    "report.credit_html",
    "report.pairs",
    "report.run_page",
    "report.figures",
    "cli.arguments",
    "cli.output",
    "cli.config_file",
    "cli.notices",
    "cli.chunk_view",
    "cli.tokenizers",
    "cli.audit_texts",
    "cli.demo_models",
    "cli.demo",
    "cli.demo_command",
    "cli.audit",
    "cli.plan",
    "cli.report",
    "cli.env",
    "cli.gkd_help",
    "cli.dry_run",
    "cli.gkd",
    "cli.dispatch",
    "cli.__main__",
]
# The package itself names everything, but loads it on first use.
WITHOUT_LAYER = {"__init__"}

FORBIDDEN = {
    "alignment": {"torch", "trl", "accelerate", "peft", "datasets"},
    "objectives": {"trl", "tokenizers", "accelerate", "peft", "datasets"},
    "planning": {"trl", "tokenizers", "accelerate", "datasets"},
    "serving": {"trl", "torch", "transformers", "accelerate", "peft", "datasets"},
    "report": {"trl", "torch"},
    "cli": {"trl"},
    "errors": {"torch", "trl", "transformers"},
    "sources": {"torch", "trl", "transformers"},
}


def modules() -> dict[str, Path]:
    """Every module by its dotted name inside the package; an `__init__` by the name of its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


def imported(name: str, path: Path) -> Iterator[str]:
    """Absolute dotted names of what a module imports, also inside functions and under `TYPE_CHECKING`."""
    package = ["trl_xtok", *name.split(".")]
    if path.name != "__init__.py" or name == "__init__":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def own(imports: Iterator[str]) -> set[str]:
    """The modules of the package among them; what is taken from the package itself counts as `__init__`."""
    known = modules()
    names = {name.removeprefix("trl_xtok.") for name in imports if name.startswith("trl_xtok.")}
    return {name if name in known else name.rpartition(".")[0] or "__init__" for name in names}


LAYERED = {name: path for name, path in modules().items() if name not in WITHOUT_LAYER}
FOLDERS = {name.partition(".")[0] for name in LAYERS} | {"report", "cli"}


def test_every_module_has_a_layer():
    folder_inits = {name for name, path in LAYERED.items() if path.name == "__init__.py"}
    assert set(LAYERED) - folder_inits <= set(LAYERS), "Give each new module its place in LAYERS."
    assert folder_inits <= FOLDERS


@pytest.mark.parametrize("name", LAYERED)
def test_a_module_imports_only_what_stands_above_it(name):
    used = own(imported(name, LAYERED[name]))
    if LAYERED[name].name == "__init__.py":
        assert {module.partition(".")[0] for module in used} <= {name, "errors"}
        return
    assert name in LAYERS, "Give it its place in LAYERS."
    above = set(LAYERS[: LAYERS.index(name)])
    above_folders = {module.partition(".")[0] for module in above} - {name.partition(".")[0]}
    # Only the command line stands below all public names.
    public = {"__init__"} if name.startswith("cli.") else set()
    assert used <= above | above_folders | public
    if name.startswith("report."):
        assert not {module for module in used if module.startswith("training")}


@pytest.mark.parametrize("name", LAYERED)
def test_a_module_imports_only_the_packages_of_its_folder(name):
    folder = name.partition(".")[0]
    roots = {module.partition(".")[0] for module in imported(name, LAYERED[name])}
    assert not roots & FORBIDDEN.get(folder, set())


@pytest.mark.parametrize("name", [name for name in LAYERED if name.startswith("objectives")])
def test_objectives_know_no_tokenizer(name):
    assert not [module for module in imported(name, LAYERED[name]) if "Tokenizer" in module]


@pytest.mark.parametrize("name", [name for name in modules() if not name.startswith("training")])
def test_only_training_imports_trl(name):
    assert "trl" not in {module.partition(".")[0] for module in imported(name, modules()[name])}


@pytest.mark.parametrize("name", modules())
def test_a_file_has_at_most_300_lines_and_a_function_60(name):
    source = modules()[name].read_text()
    assert len(source.splitlines()) <= 300
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno - node.lineno >= 60}
    assert not long


def test_imports_of_every_form_are_seen(tmp_path):
    """Shows that the tests above can fail."""
    module = tmp_path / "credit.py"
    module.write_text(
        "import trl.trainer\nfrom ..training import config\nfrom . import losses\nfrom torch import nn\n"
    )
    seen = set(imported("objectives.credit", module))
    assert seen == {"trl.trainer", "trl_xtok.training.config", "trl_xtok.objectives.losses", "torch.nn"}
