"""The program that builds question files and says what is missing."""

import json
import re
import shutil
from pathlib import Path

import pytest

from llava.eval import prepare
from llava.eval.benchmarks.contract import PROGRAMS
from llava.eval.benchmarks.registry import MODULES, benchmark
from llava.forecast import size
from tests.llava.eval.data_tree import MAKERS, make_data_tree


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def data(tmp_path):
    return make_data_tree(tmp_path / "eval")


def test_the_tree_is_of_known_benchmarks():
    assert set(MAKERS) <= set(MODULES)


@pytest.mark.parametrize("name", MAKERS)
def test_every_benchmark_is_prepared_and_checked(data, capsys, name):
    command = [name, "--data", str(data)]
    before = sorted(data.rglob("*"))
    prepare.main([*command, "--check"])
    checked = last_line(capsys)
    assert sorted(data.rglob("*")) == before  # --check writes nothing
    prepare.main(command)
    first = last_line(capsys)
    assert first["questions"] == checked["questions"] > 0
    assert first["program"] in PROGRAMS.values()
    assert first["absent_images"] == 0
    file = data / MAKERS[name][0] / benchmark(name).split().question_file
    assert first["question_file"] == str(file)
    content = file.read_bytes()
    prepare.main(command)
    assert not last_line(capsys)["built"]
    prepare.main([*command, "--rebuild"])
    assert last_line(capsys)["built"] == (file.suffix != ".tsv")
    assert file.read_bytes() == content
    prepare.main([*command, "--limit", "1"])
    limited = last_line(capsys)
    assert 0 < limited["questions"] < first["questions"]
    assert limited["question_file"].endswith(f"{file.stem}_limit_1{file.suffix}")


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_missing_is_listed_with_where_to_get_it(tmp_path, capsys, name):
    with pytest.raises(SystemExit, match="is not complete; get what is marked MISSING"):
        prepare.main([name, "--data", str(tmp_path), "--check"])
    said = capsys.readouterr().out
    needed = [need for need in benchmark(name).split().needs if not need.optional]
    assert said.count("MISSING") == len(needed)
    assert all(f"{need.source}, {size(need.gigabytes)}" in said for need in needed)
    assert json.loads(said.splitlines()[-1])["missing"] == [need.paths[0] for need in needed]
    assert not list(tmp_path.iterdir())


def test_all_benchmarks_at_once(data, capsys):
    """One of them without its pictures, one with a damaged file, some that nobody downloaded: all are named."""
    shutil.rmtree(data / "gqa" / "data" / "images")
    (data / "textvqa" / "TextVQA_0.5.1_val.json").write_text("{}")
    before = sorted(data.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        prepare.main(["--all", "--check", "--data", str(data)])
    assert stop.value.code == 1
    assert sorted(data.rglob("*")) == before
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-1])
    assert found["missing"]["gqa"] == [str(data / "gqa" / "data" / "images")]
    assert "about 20 GB" in said
    assert found["gigabytes"] >= 20
    assert re.search(r"estimate: \d+ questions take about [\d.]+ hours on one GPU, at 0.115 s an answer", said)
    assert set(found["problems"]) == {"textvqa"}
    assert {*found["complete"], *found["missing"], *found["problems"]} == set(MODULES)
    assert set(found["complete"]) == set(MAKERS) - {"gqa", "textvqa"}


@pytest.mark.parametrize("flags", [[], ["gqa", "--all"], ["--all", "--limit", "3"]])
def test_one_benchmark_or_all(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        prepare.main(flags)
    assert stop.value.code == 2
    assert "--all" in capsys.readouterr().err


def test_images_that_are_not_there_are_counted(data, capsys):
    for number in (0, 2):
        (data / "gqa" / "data" / "images" / f"n{number}.jpg").unlink()
    with pytest.raises(SystemExit) as stop:
        prepare.main(["gqa", "--data", str(data), "--check"])
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert "2 images of questions are not in" in said.err
    assert "n0.jpg, n2.jpg" in said.err
    assert json.loads(said.out.splitlines()[-1])["absent_images"] == 2


def test_a_file_of_llavas_is_taken_as_it_is(data, capsys):
    file = data / "gqa" / "llava_gqa_testdev_balanced.jsonl"
    file.write_text('{"question_id": "20100", "image": "n0.jpg", "text": "Why?", "category": "default"}\n')
    prepare.main(["gqa", "--data", str(data)])
    said = last_line(capsys)
    assert (said["questions"], said["built"]) == (1, False)
    assert len(file.read_text().splitlines()) == 1
    prepare.main(["gqa", "--data", str(data), "--rebuild"])
    assert len(file.read_text().splitlines()) == 5


def test_a_damaged_annotation_is_one_line(data):
    file = data / "textvqa" / "TextVQA_0.5.1_val.json"
    file.write_text('{"data": [{"question_id": 1}]}')
    with pytest.raises(SystemExit, match=r"an entry of TextVQA's files in .* has no 'image_id'"):
        prepare.main(["textvqa", "--data", str(data)])
    file.write_text('{"data": [3]}')
    with pytest.raises(SystemExit, match=r"an entry of TextVQA's files in .* has another form"):
        prepare.main(["textvqa", "--data", str(data)])
    (data / "gqa" / "llava_gqa_testdev_balanced.jsonl").write_text('{"image": "n0.jpg"}')
    with pytest.raises(SystemExit, match=r"an entry of GQA's files in .* has no 'question_id'"):
        prepare.main(["gqa", "--data", str(data), "--limit", "1"])
    file.write_text("{}")
    with pytest.raises(SystemExit, match=r"TextVQA_0\.5\.1_val\.json has an entry without 'data'"):
        prepare.main(["textvqa", "--data", str(data)])


def test_wrong_names_are_one_line(data, capsys):
    with pytest.raises(SystemExit, match="seed has no split 'video'; give one of all, image"):
        prepare.main(["seed", "--data", str(data), "--split", "video"])
    with pytest.raises(SystemExit, match="limit=0 leaves no question"):
        prepare.main(["seed", "--data", str(data), "--limit", "0"])
    with pytest.raises(ValueError, match="no benchmark 'imagenet'; give one of gqa"):
        benchmark("imagenet")


def test_seed_without_frames(data, capsys):
    shutil.rmtree(data / "seed_bench" / "SEED-Bench-video-image")
    with pytest.raises(SystemExit):
        prepare.main(["seed", "--data", str(data)])
    assert "not for --split image" in capsys.readouterr().out
    prepare.main(["seed", "--data", str(data), "--split", "image"])
    assert last_line(capsys)["questions"] == 4


@pytest.mark.parametrize("name", MAKERS)
def test_the_documentation_names_every_file(name):
    text = (Path(__file__).parents[3] / "docs" / "evaluation_benchmarks.md").read_text("utf-8")
    bench = benchmark(name)
    split = bench.split()
    wanted = [
        split.question_file,
        f"{bench.folders[0]}/",
        *(f"`{need.paths[0].partition('*')[0]}" for need in split.needs),
    ]
    assert not [word for word in wanted if word not in text]
    if bench.paper is not None:
        assert f"{bench.paper:g}" in text
