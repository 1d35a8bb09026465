"""A module imports only from lower layers; devices and configs are named where they belong."""

import ast
import re
from pathlib import Path

import pytest

import jaxseg

ROOT = Path(__file__).resolve().parent.parent / "jaxseg"
LAYERS = {
    "types": 0,
    "errors": 0,
    "best": 1,
    "broken": 1,
    "checksums": 1,
    "arguments": 1,
    "printing": 1,
    "process": 1,
    "distributed": 1,
    "supervise": 1,
    "health": 1,
    "files": 1,
    "locks": 1,
    "manager": 1,
    "meta": 1,
    "stop": 1,
    "threads": 2,
    "trace": 1,
    "models": 1,
    "losses": 1,
    "metrics": 1,
    "augment": 1,
    "optim": 1,
    "data": 2,
    "step": 2,
    "compilations": 2,
    "parallel": 3,
    "checkpoints": 3,
    "inference": 3,
    "transfer": 4,
    "evaluate": 4,
    "figures": 4,
    "trackers": 3,
    "logs": 4,
    "summary": 4,
    "preflight": 4,
    "stragglers": 4,
    "incidents": 5,
    "experiment": 5,
    "predict": 5,
    "score": 6,
    "preview": 6,
    "occlusion": 7,
    "report": 6,
    "trained": 7,
    "loop": 7,
    "doctor": 7,
    "train": 8,
    "replay": 9,
    "verify": 8,
    "benchmark": 8,
    "main": 10,
}


def _modules():
    return sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def _noun(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(source: str) -> set[str]:
    """Dotted names below jaxseg that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxseg":
            if node.module == "jaxseg":
                found |= {alias.name for alias in node.names}
            else:
                found.add(node.module.removeprefix("jaxseg."))
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("jaxseg.") for a in node.names if a.name.startswith("jaxseg.")}
    return found


def violations(noun: str, source: str) -> list[str]:
    return [
        f"{noun} (layer {LAYERS[noun]}) imports {name} (layer {LAYERS[name.split('.')[0]]})"
        for name in _imports(source)
        if name.split(".")[0] != noun and LAYERS[name.split(".")[0]] >= LAYERS[noun]
    ]


def test_every_module_has_a_layer():
    assert {_noun(p) for p in _modules()} <= LAYERS.keys()


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_from_lower_layers(path):
    assert violations(_noun(path), path.read_text()) == []


def test_the_list_in_the_package_is_this_one():
    listed = {}
    for line in jaxseg.__doc__.splitlines():
        found = re.match(r" {4}(\d+) +([a-z, ]+?) {2,}\w", line)
        if found:
            listed |= {name: int(found[1]) for name in found[2].split(", ")}
    assert listed == LAYERS


def test_a_planted_upward_import_is_found():
    assert violations("losses", "from jaxseg.step import make_train_step")
    assert violations("optim", "def f():\n    from jaxseg import losses")


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_configs_and_devices_are_named_in_their_places_only(path):
    source = path.read_text()
    if _noun(path) not in (
        "arguments",
        "experiment",
        "main",
        "occlusion",
        "replay",
        "score",
        "train",
        "trained",
    ):
        assert "ml_collections" not in source
    if _noun(path) not in ("parallel", "distributed", "summary", "doctor"):
        assert "jax.devices" not in source
        assert "local_devices" not in source


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_house_rules(path):
    source = path.read_text()
    assert source.count("\n") <= 500, "a file over 500 lines holds more than one noun"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 65, f"{node.name} has {length} lines"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            assert len(node.args) < 2, f"line {node.lineno}: .get(key, default) hides a mistyped key"
    assert "pickle" not in source.replace("allow_pickle=False", "").replace("picklable", "").replace(
        "pickled", ""
    )


def test_no_device_is_touched_at_import(tmp_path):
    import subprocess
    import sys

    code = (
        "import importlib, pkgutil, jaxseg, jax._src.xla_bridge as bridge\n"
        "for m in pkgutil.walk_packages(jaxseg.__path__, 'jaxseg.'):\n"
        "    if m.name == 'jaxseg.benchmark.twin':\n"
        "        continue  # it needs PyTorch, which an extra brings\n"
        "    importlib.import_module(m.name)\n"
        "    assert not bridge._backends, m.name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_only_the_line_that_a_process_ends_with_begins_as_it():
    """By that `supervise` knows whether a process which jaxlib ended had said why."""
    named = {_noun(p) for p in _modules() if '"jaxseg: ' in p.read_text()}
    assert named == {"errors", "supervise"}
