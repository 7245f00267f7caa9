"""The house: arrows one way, one name per module, sizes, and that a wheel holds what it needs."""

import ast
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import ROOT

FLOORS = [  # each may import from itself and from those above it in this list
    "nanomerci/address.py kernels nanomerci/runtime nanomerci/__init__.py",
    "nanomerci/tasks",
    "grpo.py dapo.py cfn.py nanomerci/merci.py nanomerci/counts.py nanomerci/advantages.py",
    "nanomerci/bonuses nanomerci/objectives.py",
    "nanomerci/loop",
    "nanomerci/view",
    "sample.py",
    "train.py",
    "nanomerci/lab nanomerci/bench nanomerci/integrations",
]
READERS_PATH = [
    *("train.py", "sample.py", "cfn.py", "grpo.py", "dapo.py", "nanomerci/merci.py"),
    *("nanomerci/bonuses/cfn.py", "nanomerci/objectives.py"),
    *("nanomerci/loop/collect.py", "nanomerci/loop/model.py", "nanomerci/loop/rollout.py"),
]
MATHS = ["grpo.py", "dapo.py", "cfn.py", "nanomerci/merci.py", "nanomerci/counts.py"]
MATHS += [
    "nanomerci/advantages.py",
    *(f"nanomerci/bonuses/{p.name}" for p in (ROOT / "nanomerci/bonuses").glob("[a-z]*.py")),
]


def sources():
    tops = [ROOT / name for name in ("train.py", "sample.py", "cfn.py", "grpo.py", "dapo.py")]
    return [*tops, *(ROOT / "kernels").glob("*.py"), *(ROOT / "nanomerci").rglob("*.py")]


def file_of(module):
    """Dotted name in our package -> its file, or None: it is a name in a module, or not ours."""
    path = Path(*module.split(".")[1:])
    if not path.parts:
        return ROOT / "nanomerci/__init__.py" if module == "nanomerci" else None
    for base in (ROOT / "nanomerci", ROOT):
        for file in (base / path.with_suffix(".py"), base / path / "__init__.py"):
            if module.split(".")[0] == "nanomerci" and file.exists():
                return file
    return None


def imports(file):
    """-> our files that this one imports, wherever in it; the other modules' names."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found = file_of(name) or file_of(name.rpartition(".")[0])
            if found:
                ours.add(found)
            elif name.split(".")[0] != "nanomerci":
                others.add(name.split(".")[0])
    return ours - {file, ROOT / "nanomerci/__init__.py"}, others


def floor(file):
    name = file.relative_to(ROOT).as_posix()
    for level, rooms in enumerate(FLOORS):
        if any(name == room or name.startswith(f"{room}/") for room in rooms.split()):
            return level
    raise AssertionError(f"{name} stands on no floor")


def test_no_import_goes_up():
    for file in sources():
        for target in imports(file)[0]:
            assert floor(target) <= floor(file), f"{file} imports {target}"


def test_no_circle():
    graph = {file: imports(file)[0] for file in sources()}
    while graph:
        leaves = [file for file, targets in graph.items() if not targets & graph.keys()]
        assert leaves, f"a circle among {sorted(map(str, graph))}"
        for leaf in leaves:
            del graph[leaf]


def test_the_maths_imports_torch_and_itself():
    for name in MATHS:
        ours, others = imports(ROOT / name)
        assert others <= {"torch", *sys.stdlib_module_names}, name
        for target in ours:
            place = target.relative_to(ROOT).as_posix()
            assert place in MATHS or place == "nanomerci/address.py" or place.startswith("kernels/")


def test_sizes():
    """What a reader walks is short, functions fit on a screen."""
    lines = {file: len(file.read_text().splitlines()) for file in sources()}
    assert sum(lines[ROOT / name] for name in READERS_PATH) <= 2300
    assert sum(lines.values()) <= 14_400
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                where = f"{file.name}:{node.lineno} {node.name}"
                kernel = any("jit" in ast.unparse(d) for d in node.decorator_list)
                assert node.end_lineno - node.lineno < 60 or kernel, where
                assert len(node.args.args) + len(node.args.kwonlyargs) <= 10 or kernel, where


ONE_NAME = """
import sys
{first}
import nanomerci.train, nanomerci.sample, nanomerci.cfn, nanomerci.kernels.logprob
import cfn, train, kernels.logprob, kernels.cfn_score, sample, grpo, dapo
assert cfn is nanomerci.cfn and train is nanomerci.train and sample is nanomerci.sample
assert kernels.logprob is nanomerci.kernels.logprob
files = {{}}
for name, module in list(sys.modules.items()):
    if getattr(module, "__file__", None) in {ours!r}:
        files.setdefault(module.__file__, set()).add(id(module))
assert len(files) > 30 and all(len(modules) == 1 for modules in files.values()), files
"""


@pytest.mark.parametrize(
    "first", ["", "import cfn", "from train import main", "import kernels.bench"]
)
def test_no_module_is_loaded_under_two_names(first):
    code = ONE_NAME.format(first=first, ours={str(file) for file in sources()})
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_others_modules_of_the_same_names_are_left_alone(tmp_path):
    (tmp_path / "train.py").write_text("mine = 1\n")
    code = f"import sys; sys.path.append({str(ROOT)!r}); import nanomerci, train; print(train.mine)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


STUB = """
from kernels.layer import CUDAProperties
from .utils import get_kernel

def __getattr__(name):  # whatever else transformers imports
    if name.startswith("__"):
        raise AttributeError(name)
    if name.islower():  # a decorator
        return lambda *_, **__: lambda decorated: decorated
    return type(name, (), {"__init__": lambda self, *_, **__: None})
"""


def test_hugging_faces_kernels_works_beside_ours(tmp_path):
    """A stub that has its names, imports itself both ways, and claims to be installed."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text(STUB)
    (package / "layer.py").write_text("class CUDAProperties: pass\n")
    (package / "utils.py").write_text("def get_kernel(name): return name\n")
    info = tmp_path / "kernels-0.18.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    code = f"""
import sys
sys.path[1:1] = [{str(tmp_path)!r}]
import transformers, nanomerci.loop.model
import kernels
from kernels import CUDAProperties, get_kernel
import kernels.layer, kernels.logprob
assert kernels.layer.CUDAProperties is CUDAProperties and get_kernel("a") == "a"
assert kernels.logprob.linear_logprob_entropy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_wheel_is_whole_and_installs_no_global_names(tmp_path):
    """Built and installed into an environment that has our dependencies, used from elsewhere."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install -e '.[dev]'")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env/lib").glob("python*/site-packages")
    target = ["install", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run([*pip, *target], check=True)
    ours = {str(p) for p in (*map(Path, sys.path),) if p.name == "site-packages"}
    (site / "dependencies.pth").write_text("\n".join(sorted(ours)))
    code = """
import importlib.util, nanomerci, nanomerci.merci, nanomerci.cfn, nanomerci.train
import nanomerci.integrations, nanomerci.kernels.logprob
from nanomerci.runtime import config
assert "site-packages" in nanomerci.__file__ and "site-packages" in nanomerci.cfn.__file__
assert config.parse(["toy_sql"]).task == "toy_sql" and "toy_sql" in config.listing()
assert not importlib.util.find_spec("cfn") and not importlib.util.find_spec("train")
"""
    python = tmp_path / "env/bin/python"
    subprocess.run([python, "-I", "-c", code], cwd=tmp_path, check=True)
