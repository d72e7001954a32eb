"""Converts files of items of llm-foundry, LAMBADA and WikiText for ``modbench eval --data-dir``.

    python examples/local_items.py FILE... --out FOLDER

llm-foundry's ``arc_easy.jsonl``, ``arc_challenge.jsonl`` and ``piqa.jsonl`` get the fields of the data
set on the hub, so that lm-eval's own task of this name reads them. Its other files of multiple choice,
``{"query", "choices", "gold"}``, and of continuations need no conversion: give them a name that is no
task of lm-eval, and modbench reads them as they are. WikiText becomes one article per line.
"""

import argparse
import json
import re
from pathlib import Path

#: Names of tasks of lm-eval by the names of their files elsewhere.
TASKS = {
    "lambada_test": "lambada_openai",
    "wikitext2_test": "wikitext",
    "wiki.test": "wikitext",
}
ARTICLE = re.compile(r"^ = [^=\n](?:.*[^=\n])? = \n", re.MULTILINE)


def arc(row):
    letters = [chr(ord("A") + place) for place in range(len(row["choices"]))]
    return {
        "question": question(row["query"]),
        "choices": {"text": row["choices"], "label": letters},
        "answerKey": letters[row["gold"]],
    }


def piqa(row):
    first, second = row["choices"]
    return {"goal": question(row["query"]), "sol1": first, "sol2": second, "label": row["gold"]}


def question(query):
    """Remove the words that the task's own prompt adds."""
    return query.removeprefix("Question: ").removesuffix("Answer:").rstrip("\n")


CONVERTED = {"arc_easy": arc, "arc_challenge": arc, "piqa": piqa}


def rows_of(file, task):
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".jsonl":
        starts = [match.start() for match in ARTICLE.finditer(text)] or [0]
        return [{"page": text[i:j]} for i, j in zip(starts, [*starts[1:], len(text)], strict=True)]
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    convert = CONVERTED.get(task)
    return [convert(row) if convert and "query" in row else row for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for file in asked.files:
        task = TASKS.get(file.stem, file.stem)
        rows = rows_of(file, task)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (asked.out / f"{task}.jsonl").write_text(text, encoding="utf-8")
        print(f"{file}: {len(rows)} items of task {task}")


if __name__ == "__main__":
    main()
