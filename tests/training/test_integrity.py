"""Nothing in a run folder is trusted: a flipped bit or a damaged file is named; numbers stay the same."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from tests import runs

from lore.base.errors import BadInput
from lore.config.compose import compose, to_yaml
from lore.config.options import Config
from lore.config.stored import load_stored, load_to_evaluate
from lore.training import manifest, run_folder
from lore.training.checkpoint import Checkpoints

DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": lambda data, draw: data[: draw.randrange(len(data))],
    "empty": lambda data, draw: b"",
    "twice": lambda data, draw: data + data,
    "a part twice": lambda data, draw: data[: (k := draw.randrange(len(data)))] + data[k // 2 :],
    "utf-16": lambda data, draw: data.decode().encode("utf-16"),
    "latin-1": lambda data, draw: data + "é".encode("latin-1"),
    "zeros": lambda data, draw: bytes(len(data)),
    "noise": lambda data, draw: draw.randbytes(len(data)),
    "a list": lambda data, draw: b"[1, 2]",
    "a number": lambda data, draw: str(draw.randrange(10**9)).encode(),
    "a text": lambda data, draw: b'"text"',
    "null": lambda data, draw: b"null",
    "deep": lambda data, draw: b"[" * 10**5,
    "deep mapping": lambda data, draw: b'{"a":' * 10**4,
    "long number": lambda data, draw: b'{"seed": ' + b"1" * 10**4 + b"}",
    "large": lambda data, draw: data + b" " * (17 << 20),
    "wrong types": lambda data, draw: data.replace(b"1", b"[1]").replace(b"0", b'{"0": 0}'),
    "wrong shape": lambda data, draw: b'{"status": [], "resumed": 5, "seed": {}, "run": [], "agent": 1}',
    "laughs": lambda data, draw: b"a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "tags": lambda data, draw: b"seed: !!python/object/apply:os.getcwd []\n",
}
NUMBERS = range(3)  # of each damage: 60 a file


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, as lore-train leaves it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    folder.mkdir()
    cfg = compose([*runs.TINY, "run.steps=60", f"run.dir={folder}"])
    run_folder.write_start(folder, to_yaml(cfg), cfg, ["lore-train"])
    runs.run(folder, "run.steps=60", f"run.dir={folder}")
    return folder


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def look(run_dir: Path) -> None:
    """What `lore-train resume=` looks at before it changes anything. Raises BadInput."""
    cfg = load_stored(run_dir)
    run_folder.check_resume(run_dir, cfg, [])


def flip(path: Path, draw: random.Random, size: int | None = None) -> bytes:
    """Change one bit of a file (of its first `size` bytes), and return what it held."""
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[draw.randrange(size or len(whole))] ^= 1 << draw.randrange(8)
    path.write_bytes(changed)
    return whole


def test_no_flipped_bit_of_the_latest_checkpoint_or_its_pieces_is_loaded(copy: Path) -> None:
    """100 each in state, latents, segments, manifest and pieces: the checkpoint before, or a refusal."""
    draw = random.Random(0)
    look(copy)
    older, latest = manifest.checkpoints(copy)
    shared = set(manifest.read(older).files)  # type: ignore[union-attr]
    names = [*manifest.read(latest).files, manifest.NAME]  # type: ignore[union-attr]
    assert len(names) >= 5
    for name in names:
        path = manifest.locate(latest, name)
        for _ in range(100):
            whole = flip(path, draw)
            damaged: dict[Path, manifest.Unreadable] = {}
            try:
                point = manifest.resume_point(copy, damaged)
                assert point is not None and point[0] == older
                assert str(path) in str(damaged[latest])
            except BadInput as error:
                assert name in shared and str(path) in str(error)
            path.write_bytes(whole)
    look(copy)


@pytest.mark.parametrize("name", manifest.RECORD[:3])
def test_no_flipped_bit_of_the_record_is_gone_on_from(name: str, copy: Path) -> None:
    """Rows behind the checkpoint are written again, so a flipped bit there changes nothing."""
    draw, path = random.Random(1), copy / name
    sealed = manifest.read(manifest.checkpoints(copy)[-1])
    assert sealed is not None
    size = sealed.record[name].bytes
    if not size:
        path.write_bytes(b"a row after it")
        look(copy)
        return
    for _ in range(100):
        whole = flip(path, draw, size)
        with pytest.raises(BadInput, match=name):
            look(copy)
        path.write_bytes(whole)
    path.write_bytes(path.read_bytes()[: size - 1])
    with pytest.raises(BadInput, match=f"{name}.*rows were lost"):
        look(copy)


def test_no_flipped_bit_of_the_config_changes_what_is_computed(copy: Path) -> None:
    """It is refused, or it changed nothing that is read."""
    draw, path, same = random.Random(2), copy / "config.yaml", 0
    before = asdict(load_stored(copy))
    for _ in range(100):
        whole = flip(path, draw)
        try:
            look(copy)
            assert asdict(load_stored(copy)) == before
            same += 1
        except BadInput:
            pass
        path.write_bytes(whole)
    assert same < 50


def test_an_edited_config_is_refused_by_key_and_run_steps_may_change_on_the_command_line(copy: Path) -> None:
    path = copy / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("lr: 0.01", "lr: 0.02"))
    with pytest.raises(BadInput, match=r"step-000000060 was made under 0\.01, not 0\.02") as error:
        look(copy)
    assert error.value.key == "agent.lr"
    path.write_text(text.replace("steps: 60", "steps: 90"))
    with pytest.raises(BadInput) as error:
        look(copy)
    assert error.value.key == "run.steps"
    path.write_text(text)
    longer = load_stored(copy, ["run.steps=90"])
    run_folder.check_resume(copy, longer, ["run.steps"])
    run_folder.write_resume(copy, to_yaml(longer), longer, ["lore-train"])
    look(copy)  # as after a kill before the next checkpoint
    assert load_stored(copy).run.steps == 90


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "summary.json", "segments.json"])
def test_a_damaged_file_of_ours_is_named_and_nothing_is_lost(
    name: str, damage: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read as a resumed run reads it: refused, kept under another name, or harmless; never a traceback."""
    cfg = load_stored(copy)
    path = manifest.checkpoints(copy)[-1] / name if name == "segments.json" else copy / name
    whole = path.read_bytes()
    for number in NUMBERS:
        data = DAMAGES[damage](whole, random.Random(number))
        path.write_bytes(data)
        if name == "config.yaml":
            for load in (look, load_to_evaluate):
                try:
                    load(copy)
                    assert load is not look or asdict(load_stored(copy)) == asdict(cfg)
                except BadInput as error:
                    assert "\n" not in str(error) and "config.yaml" in str(error)
        elif name == "segments.json":
            damaged: dict[Path, manifest.Unreadable] = {}
            manifest.resume_point(copy, damaged)
            assert data == whole or str(path) in str(damaged[path.parent])
            _without_manifest(copy, whole, path)
        else:
            if name == "provenance.json":
                run_folder.write_resume(copy, to_yaml(cfg), cfg, ["lore-train"])
                assert isinstance(json.loads(path.read_text())["resumed"], list)
            else:
                run_folder.write_failure(copy, cfg, RuntimeError("x"))
                assert json.loads(path.read_text())["status"] == "failed"
            said, kept = capsys.readouterr().out, list(copy.glob(f"damaged-{name}*"))
            assert [data] == [file.read_bytes() for file in kept] if kept else _is_object(data)
            assert bool(kept) == (str(path) in said)
            for file in kept:
                file.unlink()
        path.write_bytes(whole)


def _is_object(data: bytes) -> bool:
    return isinstance(json.loads(data), dict)


def _without_manifest(run_dir: Path, whole: bytes, path: Path) -> None:
    """The same file in a checkpoint of an older version: refused by name, or read as it was."""
    from lore.base.files import Unreadable
    from lore.training.checkpoint import _read_segments

    try:
        assert [list(s) for s in _read_segments(path.parent)] == json.loads(whole)
    except Unreadable as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("where", ["seed", "llm.model", "env.id", "logger.tags"])
@pytest.mark.parametrize("text", ["${oc.env:HOME}", "a ${seed} b", "${lore.arm:}"])
def test_a_stored_config_has_no_interpolation(where: str, text: str, tmp_path: Path) -> None:
    group, _, name = where.rpartition(".")
    value = f"['{text}']" if name == "tags" else f"'{text}'"
    stored = f"{group}:\n  {name}: {value}\n" if group else f"{name}: {value}\n"
    (tmp_path / "config.yaml").write_text(stored)
    for load in (load_stored, load_to_evaluate):
        with pytest.raises(BadInput, match="plain values") as error:
            load(tmp_path)
        assert error.value.key == where
    assert (tmp_path / "config.yaml").read_text() == stored


@pytest.mark.parametrize(
    ("key", "value"),
    [("llm.base_url", "https://models.example"), ("llm.key_variable", "AWS_SECRET_ACCESS_KEY")],
)
def test_where_a_key_goes_is_repeated_on_the_command_line(key: str, value: str, tmp_path: Path) -> None:
    name = key.removeprefix("llm.")
    (tmp_path / "config.yaml").write_text(f"llm:\n  {name}: {value}\n")
    with pytest.raises(BadInput, match="lore-train resume=") as error:
        load_stored(tmp_path)
    assert error.value.key == key and f"{key}={value}" in str(error.value)
    with pytest.raises(BadInput):
        load_stored(tmp_path, [f"{key}=other"])
    assert vars(load_stored(tmp_path, [f"{key}={value}"]).llm)[name] == value
    assert vars(load_to_evaluate(tmp_path).llm)[name] == vars(Config().llm)[name]


def test_a_package_that_a_stored_config_imports_is_repeated_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("env:\n  id: evil:X-v0\n")
    for load, command in ((load_stored, "lore-train resume="), (load_to_evaluate, "lore-eval run=")):
        with pytest.raises(BadInput, match=f"{command}.* env.id=evil:X-v0$") as error:
            load(tmp_path)
        assert error.value.key == "env.id"
        with pytest.raises(BadInput, match="leave it so"):
            load(tmp_path, ["env.id=other:X-v0"])
        assert load(tmp_path, ["env.id=evil:X-v0"]).env.id == "evil:X-v0"


def test_what_a_checkpoint_needs_is_in_its_manifest(copy: Path) -> None:
    """Every file of a checkpoint but the manifest is vouched for."""
    latest = manifest.checkpoints(copy)[-1]
    sealed = manifest.read(latest)
    assert sealed is not None
    assert {path.name for path in latest.iterdir()} == {
        *(name for name in sealed.files if "/" not in name),
        manifest.NAME,
    }
    state = Checkpoints(copy, None).load()
    assert state is not None
    for name, offset in state["logger"]["offsets"].items():
        assert sealed.record[name].bytes == offset
