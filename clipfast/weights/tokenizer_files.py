"""CLIP's tokenizer in the files that Hugging Face's CLIPTokenizer reads."""

from __future__ import annotations

import json
from pathlib import Path

from clipfast.data.text.tokenizer import END_ID, START_ID, merges_file_if_installed, read_vocabulary

_START, _END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path, context_length: int) -> bool:
    """Writes vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json.

    Padding is the end token, as in OpenAI's own files there; features do not depend on it.

    Returns:
        False, and nothing written, if no open_clip is installed, whose merges file this needs.
    """
    merges_file = merges_file_if_installed()
    if merges_file is None:
        return False
    _, ids, merges = read_vocabulary(merges_file)
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context_length,
        "do_lower_case": True,
        **special,
    }
    _write_json(folder / "vocab.json", ids | {_START: START_ID, _END: END_ID})
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return True


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
