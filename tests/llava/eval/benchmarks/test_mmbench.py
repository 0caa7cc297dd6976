"""MMBench: table, prompt, circular accuracy, submission, both languages."""

import json

import pytest

from llava.eval.benchmarks import mmbench
from llava.eval.benchmarks.registry import benchmark
from llava.eval.files import read_table
from llava.eval.sample import Score
from tests.llava.eval.data_tree import make_mmbench, make_mmbench_cn, write_answers

RIGHT = {7: "A", 1000007: "D", 2000007: "C", 3000007: "B", 12: "A", 1000012: "B"}


def test_questions_as_asked(folder_of):
    bench, split, folder = folder_of("mmbench")
    rows = bench.rows(folder, split)
    assert [row["question_id"] for row in rows] == list(RIGHT)
    assert rows[0]["text"] == "Which color is the square?\nA. red\nB. dark blue\nC. blue\nD. green"
    assert rows[4]["text"] == 'Look at it.\nWhich animal "exactly"?\nA. owl\nB. crab'
    assert "image" not in rows[0]
    assert mmbench.options_of({"A": "x", "B": "nan", "C": "y"}) == {"A": "x"}
    prepared = bench.prepare(folder, split)
    assert (prepared.question_file, prepared.images, prepared.built) == (folder / split.question_file, None, False)


def test_circular_by_hand(folder_of, scored_with):
    """The first question fails in one of four rotations; the second is right in both, said in words once."""
    replies = {**{one: letter for one, letter in RIGHT.items()}, 2000007: "It may be red or green", 12: "An owl."}
    summary, scores = scored_with(folder_of("mmbench"), lambda row: replies[row["question_id"]])
    assert [one.value for one in scores] == [1, 1, 0, 1, 1, 1]
    assert (summary["main"], summary["n"], summary["missing"]) == (50.0, 2, 0)
    assert summary["parts"]["rows"]["accuracy"] == {"value": pytest.approx(83.3333), "n": 6}
    assert summary["parts"]["category"]["attribute_recognition"] == {"value": 0.0, "n": 1}
    assert summary["parts"]["l2-category"]["fine"] == {"value": 100.0, "n": 1}


def test_a_question_with_an_unanswered_rotation_is_missing(folder_of, scored_with):
    summary, _ = scored_with(
        folder_of("mmbench"), lambda row: None if row["question_id"] == 2000007 else RIGHT[row["question_id"]]
    )
    assert (summary["main"], summary["n"], summary["missing"]) == (100.0, 1, 1)


def test_circular_does_not_depend_on_order():
    scores = [Score(one, float(one != 1000007), parts={"question": one % 1000000}) for one in RIGHT]
    for order in (scores, scores[::-1]):
        assert {one.question_id: one.value for one in mmbench.circular(order)} == {7: 0.0, 12: 1.0}


def test_a_subset_takes_whole_questions(folder_of):
    bench, split, folder = folder_of("mmbench")
    prepared = bench.prepare(folder, split, limit=1)
    whole = {row["index"]: row for row in read_table(folder / split.question_file)}
    part = list(read_table(prepared.question_file))
    assert [row["index"] for row in part] == ["7", "1000007", "2000007", "3000007"]
    assert all(row == whole[row["index"]] for row in part)  # pictures included
    assert prepared.built


def test_several_rounds_are_refused():
    assert mmbench.answer_key({"question_id": 7, "round_id": 0}) == "7"
    with pytest.raises(ValueError, match="answer every row once"):
        mmbench.answer_key({"question_id": 7, "round_id": 1})


def test_the_submission(folder_of, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    bench, split, folder = folder_of("mmbench")
    replies = {7: "=A", 12: "owl\x07"}
    file = write_answers(
        tmp_path / "a.jsonl", bench.rows(folder, split)[::-1], lambda row: replies.get(row["question_id"])
    )
    joined = bench.read(folder, file, split)
    sheet = openpyxl.load_workbook(bench.export(folder, split, joined.samples, tmp_path / "a")).active
    table = [[cell.value for cell in line] for line in sheet.iter_rows()]
    assert table[0] == ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert table[1] == [7, "Which color is the square?", "red", "dark blue", "blue", "green", "=A", "A", "dev"]
    assert table[5] == [12, 'Which animal "exactly"?', "owl", "crab", None, None, "owl", "A", "dev"]
    assert [line[6] for line in table[1:]] == ["=A", None, None, None, "owl", None]
    assert sheet.cell(2, 7).data_type == "s"  # no formula


def test_later_tables_lack_columns(tmp_path):
    (tmp_path / "t.tsv").write_text("index\tquestion\tA\tB\timage\n3\twhy?\tx\ty\tAAAA\n")
    assert mmbench.submission(tmp_path / "t.tsv", {3: "B"}) == [
        ["index", "question", "A", "B", "prediction"],
        [3, "why?", "x", "y", "B"],
    ]


def test_a_table_without_answers_is_not_scored(folder_of, scored_with):
    bench, split, folder = folder_of("mmbench")
    text = (folder / split.question_file).read_text().split("\n")
    header = text[0].replace("\tanswer\t", "\tunused\t")
    (folder / split.question_file).write_text("\n".join([header, *text[1:]]))
    summary, _ = scored_with((bench, split, folder), lambda row: "A")
    assert (summary["main"], summary["n"], summary["missing"]) == (None, 0, 0)


def test_a_damaged_index_is_named(tmp_path):
    (tmp_path / "t.tsv").write_text("index\tquestion\nx\twhy?\n")
    with pytest.raises(ValueError, match="has the index 'x'"):
        list(mmbench.table(tmp_path / "t.tsv"))
    (tmp_path / "t.tsv").write_text("number\tquestion\n1\twhy?\n")
    with pytest.raises(ValueError, match="without 'index'"):
        list(mmbench.table(tmp_path / "t.tsv"))


@pytest.mark.parametrize("place", ["mmbench", "mmbench_cn"])
def test_the_chinese_table_may_lie_in_either_folder(tmp_path, place):
    bench = benchmark("mmbench_cn")
    make_mmbench(tmp_path / "mmbench")
    (tmp_path / "mmbench_cn").mkdir()
    make_mmbench_cn(tmp_path / place)
    split = bench.split()
    folder = bench.folder(tmp_path, split)
    assert folder == tmp_path / place
    assert bench.rows(folder, split)[4]["text"] == '请看图。\n是哪种动物 "exactly"?\nA. owl\nB. crab'
    file = write_answers(tmp_path / "a.jsonl", bench.rows(folder, split), lambda row: RIGHT[row["question_id"]])
    assert json.loads(file.read_text().split("\n")[0])["question_id"] == 7
    summary = bench.aggregate([bench.score(one) for one in bench.read(folder, file, split).samples])
    assert summary["main"] == 100.0
