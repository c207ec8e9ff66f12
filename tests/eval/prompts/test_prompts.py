"""Class names and sentences: those that come along, and a user's files."""

import json
from pathlib import Path

import pytest

from clipfast.errors import UserError
from clipfast.eval import prompts
from clipfast.eval.datasets.opening import SUITES
from clipfast.eval.prompts.reading import (
    as_words,
    prompts_of,
    read_classes,
    read_templates,
)

FILES = sorted(Path(prompts.__file__).parent.glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_comes_along_fits_its_suite(file):
    suite, content = SUITES[file.stem], json.loads(file.read_text())
    assert set(content) <= {"templates", "classes", "names"}
    assert content["templates"]
    assert all(t.count("{}") == 1 and t.endswith(".") for t in content["templates"])
    names = content.get("classes", list(content.get("names", {}).values()))
    assert len(set(names)) == len(names)
    assert all(name.strip() == name and "_" not in name for name in names)
    if "classes" in content:
        assert len(names) == suite.classes


def test_mnist_is_asked_for_as_the_paper_does():
    classes, templates = prompts_of("mnist")
    sentences = [templates[0].replace("{}", name) for name in classes]
    assert sentences[7] == 'a photo of the number: "7".'


def test_names_of_the_data_are_read_as_words_or_have_better_ones():
    assert prompts_of("food101", ["apple_pie", "sushi"]).classes == ("apple pie", "sushi")
    assert prompts_of("eurosat", ["SeaLake"]).classes == ("a sea or a lake",)
    assert prompts_of("country211", ["CD", "FR"]).classes == (
        "the Democratic Republic of the Congo",
        "France",
    )
    assert as_words("apartment_building/outdoor") == "outdoor apartment building"


def test_a_set_without_prompts_is_named():
    with pytest.raises(UserError, match="names and sentences come along; got 'ours'"):
        prompts_of("ours")


def test_files_have_a_name_or_sentence_a_line(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_bytes("\ufeffa {}\r\n\n the {c}! \n".encode())
    assert read_templates(file) == ("a {}", "the {}!")
    file.write_text("one\ntwo {c}\n")
    assert read_classes(file, 2) == ("one", "two {c}")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a photo\n", r"expected \{\} where the name goes; got 'a photo'"),
        (b"\n\n", "expected sentences, one a line; got none"),
        (b"\xff\xfe", "expected UTF-8; got other bytes"),
        (None, "no such file"),
    ],
)
def test_what_is_wrong_with_a_file_of_sentences_is_named(tmp_path, content, sentence):
    file = tmp_path / "templates.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"templates.txt: {sentence}"):
        read_templates(file)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(UserError, match="expected a file of text; got: Is a directory"):
        read_classes(tmp_path)


def test_another_number_of_names_is_refused(tmp_path):
    (tmp_path / "names").write_text("one\ntwo\n")
    with pytest.raises(UserError, match="expected 3 names, one a line for each class; got 2"):
        read_classes(tmp_path / "names", 3)
