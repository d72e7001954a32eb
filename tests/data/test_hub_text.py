"""A Hugging Face data set with more documents than are held in memory: streamed into files, resumed, and
tokenized as a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

# In a process of its own: `datasets` reads its variables once, when it is imported.
STREAM = """
import json, sys
from pathlib import Path
import numpy as np
from pyarrow import parquet
from modbench.data import hub_text, streamed
from modbench.data.token_data import DataConfig, prepare

class Stopped(Exception):
    pass

def stop(*arguments, **options):
    raise Stopped

if __name__ == "__main__":
    streamed.MOST_IN_MEMORY, hub_text.FILE_DOCUMENTS = 20, 10
    name, documents = sys.argv[1], int(sys.argv[2])
    config = DataConfig(
        source="huggingface", name=name, documents=documents, tokenizer="bytes", heldout=0.2
    )
    cache, write, written = Path(sys.argv[3]), parquet.write_table, []
    def first_two(*arguments, **options):
        parquet.write_table = stop if len(written) == 1 else first_two
        written.append(write(*arguments, **options))
    parquet.write_table = first_two
    try:
        prepare(config, cache=cache, processes=1)
    except Stopped:
        print("stopped")
    parquet.write_table = write
    data = prepare(config, cache=cache, processes=1)
    files = sorted(cache.rglob("text/*.parquet"))
    print(json.dumps({
        "rows": [parquet.read_metadata(file).num_rows for file in files],
        "texts": [row["text"] for file in files for row in parquet.read_table(file).to_pylist()],
        "bytes": [data.tokenizer.decode(side[:].tolist()) for side in (data.train_N, data.heldout_N)],
    }))
"""


def streamed(tmp_path: Path, documents: int) -> tuple[list[str], dict[str, list[str]]]:
    folder = tmp_path / "set"
    folder.mkdir(exist_ok=True)
    for name, numbers in {"train-a": range(30), "train-b": range(30, 45)}.items():
        other = {
            "id": 1 if name == "train-a" else [name],
            name: 1,
        }  # of a type of its own
        rows = [json.dumps({**other, "text": f"text {number};"}) for number in numbers]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    program = tmp_path / "stream.py"
    program.write_text(STREAM)
    done = subprocess.run(
        [sys.executable, str(program), str(folder), str(documents), str(tmp_path / str(documents))],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    return said, json.loads(last)


def test_a_stream_that_was_stopped_goes_on_where_it_was_and_ends_with_the_same_documents(
    tmp_path: Path,
) -> None:
    for documents, rows in (37, [10, 10, 10, 7]), (100, [10, 10, 10, 10, 5]):
        said, made = streamed(tmp_path, documents)
        assert "stopped" in said
        texts = [f"text {number};" for number in range(sum(rows))]
        assert made["rows"] == rows
        assert made["texts"] == texts
        train, heldout = (side.split(";")[:-1] for side in made["bytes"])
        assert sorted(train + heldout) == sorted(text[:-1] for text in texts)
        assert len(heldout) > 2
