"""The shipped recipes: found in a checkout and in a wheel, all valid; the command that lists them."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mem_gpt_cli.cli import main as cli
from mem_gpt_cli.model import resolve
from mem_gpt_cli.recipe import expand, load_recipe, refuse_unavailable, resolved, shipped, to_yaml
from mem_gpt_cli.recipe.shipped import by_name, folder

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = 14
"""How many recipes there are: a test over all of them must not pass by seeing none."""


def test_all_recipes_of_the_checkout_are_found() -> None:
    assert folder() == ROOT / "recipes"
    assert set(shipped()) == set((ROOT / "recipes").rglob("*.y*ml"))
    assert len(shipped()) == SHIPPED
    assert by_name()["all"] == ROOT / "recipes" / "all.yaml"


def test_every_shipped_recipe_is_valid_described_and_answered_by_estimate() -> None:
    seen = 0
    for path in shipped():
        recipe = load_recipe(path)
        assert 20 < len(recipe.description) <= 110, path
        assert path.read_text(encoding="utf-8").startswith("description: "), path
        for cell in expand(recipe):
            refuse_unavailable(cell.recipe, "estimate")
            seen += 1
    assert seen > SHIPPED


def test_every_model_of_a_shipped_recipe_is_known() -> None:
    names = {cell.recipe.model.name for path in shipped() for cell in expand(load_recipe(path))}
    assert {"memgpt-tiny", "gpt2", "gpt2-xl", "llama-3.1-70b", "smollm2-135m"} <= names
    for path in shipped():
        for cell in expand(load_recipe(path)):
            assert resolve(cell.recipe.model).architecture is not None


def test_the_main_recipe_changes_one_option_at_a_time() -> None:
    cells = expand(load_recipe("all"))
    assert 10 <= len(cells) <= 12
    for cell in cells:
        for lens in ("estimate", "trace", "profile"):
            refuse_unavailable(cell.recipe, lens)
        assert cell.baseline is not None
        base = resolved(cells[cell.baseline].recipe)
        changed = [section for section, value in resolved(cell.recipe).items() if value != base[section]]
        assert len(changed) == (cell.index != cell.baseline)
    runs = [cell.recipe for cell in cells]
    changes = {(r.task, r.attention.backend, r.kv_cache.kind, r.checkpointing.policy) for r in runs}
    assert changes == {
        ("inference", "sdpa", "dynamic", "none"),
        ("inference", "eager", "dynamic", "none"),
        ("inference", "sdpa", "none", "none"),
        ("training", "sdpa", "dynamic", "none"),
        ("training", "eager", "dynamic", "none"),
        ("training", "sdpa", "dynamic", "full"),
    }


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what a wheel built from this checkout installs."""
    made = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(made)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(made / "site")
    return made / "site"


def test_the_wheel_holds_the_same_recipes(unpacked_wheel: Path) -> None:
    packed = unpacked_wheel / "mem_gpt_cli" / "_recipes"
    names = {path.relative_to(packed): path.read_bytes() for path in packed.rglob("*") if path.is_file()}
    assert names == {path.relative_to(folder()): path.read_bytes() for path in shipped()}
    assert not (unpacked_wheel / "recipes").exists()


def test_an_installed_wheel_finds_its_own_recipes(unpacked_wheel: Path, tmp_path: Path) -> None:
    program = (
        "import json; from mem_gpt_cli.recipe import expand, load_recipe, shipped; "
        "print(json.dumps([[str(path) for path in shipped()], len(expand(load_recipe('all')))]))"
    )
    command = [
        sys.executable,
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {str(unpacked_wheel)!r}); {program}",
    ]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    paths, cells = json.loads(done.stdout)
    assert len(paths) == SHIPPED
    assert all(Path(path).is_relative_to(unpacked_wheel / "mem_gpt_cli" / "_recipes") for path in paths)
    assert cells == len(expand(load_recipe("all")))


def test_list_shows_each_of_them(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(["recipes", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == sorted(by_name())
    main = next(row for row in rows if row["name"] == "all")
    assert main["cells"] == len(expand(load_recipe("all")))
    assert main["tasks"] == ["inference", "training"]
    assert cli.run(["recipes", "list"]) == 0
    table = capsys.readouterr().out
    assert all(row["name"] in table and row["description"] in table for row in rows)


def test_a_narrow_terminal_cuts_no_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(["recipes", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == sorted(by_name())
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", sorted(by_name()))
def test_show_prints_a_recipe_that_is_the_same(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["recipes", "show", name]) == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_recipe(path) == load_recipe(name)
    before, after = (expand(load_recipe(source)) for source in (name, path))
    assert [(cell.digest, cell.key) for cell in before] == [(cell.digest, cell.key) for cell in after]


def test_show_takes_flags_and_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "tiny-train",
        "--batch",
        "3",
        "--set",
        "optimizer.lr=1e-2",
        "--set",
        "model.config.n_layer=2",
    ]
    assert cli.run(["recipes", "show", *arguments]) == 0
    expected = load_recipe(
        "tiny-train", overrides=["workload.batch=3", "optimizer.lr=0.01", "model.config={n_layer: 2}"]
    )
    assert capsys.readouterr().out == to_yaml(expected)
    assert cli.run(["recipes", "show", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == resolved(expected)
    assert cli.run(["recipes", "show", "tiny-train", "--csv", "x.csv"]) == 2
    assert "--csv belongs to" in capsys.readouterr().err


def test_validate_says_which_lenses_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.yaml").write_text("quantization: {scheme: nf4}\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text("device: cuda\n", encoding="utf-8")
    (tmp_path / "x.yaml").write_text("loss: {kind: chunked}\n", encoding="utf-8")
    (tmp_path / "y.yaml").write_text("task: x\nseq: 1\n", encoding="utf-8")
    files = [str(tmp_path / name) for name in ("q.yaml", "c.yaml", "x.yaml", "y.yaml")]
    assert cli.run(["recipes", "validate", *files, "tiny-generate"]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"ok   {files[0]}  1 cell, estimate, trace, profile",
        f"ok   {files[1]}  1 cell, estimate, trace, profile",
        f"bad  {files[2]}  1 error",
        f"bad  {files[3]}  2 errors",
        "ok   tiny-generate  1 cell, estimate, trace, profile",
    ]
    assert len(captured.err.splitlines()) == 3
    assert f"{files[2]}:1:14: loss.kind: belongs to training" in captured.err
    assert cli.run(["recipes", "validate", *map(str, shipped())]) == 0


def test_schema_prints_the_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "memgpt recipe"
