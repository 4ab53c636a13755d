"""A small Llama that wrote children's stories: which stories stand behind the next ten?

    PROPONENT_DATA=… proponent attribute examples/stories_llm.py --method ekfac

Needs proponent[transformers], and in the folder PROPONENT_DATA (or ../shared/data beside the checkout) the model
models/stories260K and the stories lm/tinystories/val.jsonl and test.jsonl.
"""

import json
import os
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import proponent as pp

DATA = Path(os.environ.get("PROPONENT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MODEL = DATA / "models" / "stories260K"
TRAIN, QUERIES, LENGTH = 200, 10, 256
FILES = {"train": ("val.jsonl", TRAIN), "query": ("test.jsonl", QUERIES)}


@cache
def stories(split):
    name, count = FILES[split]
    lines = (DATA / "lm" / "tinystories" / name).read_text().splitlines()
    return [json.loads(line)["text"] for line in lines[:count]]


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def tokens(split):
    """Token ids, padded to one length; padding carries no loss (-100) and no attention."""
    made = [tokenizer()(text, truncation=True, max_length=LENGTH)["input_ids"] for text in stories(split)]
    width = max(map(len, made))
    ids = torch.zeros(len(made), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, words in enumerate(made):
        ids[row, : len(words)] = torch.tensor(words)
        mask[row, : len(words)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def task():
    disable_progress_bar()
    return pp.Task(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), loss="causal_lm")


def train():
    return tokens("train")


def query():
    return tokens("query")


def describe(split, id):
    return stories(split)[id]
