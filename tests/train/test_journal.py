"""Answers on disk, by request."""

from __future__ import annotations

import threading

from sdkernels.train.journal import Journal


def test_answers_survive_the_process_and_a_torn_line(tmp_path):
    file = tmp_path / "folder" / "journal.jsonl"
    journal = Journal(file)
    journal.add({"seed": 1, "prompt": [1]}, {"choices": [1]})
    with file.open("a") as handle:
        handle.write('{"request": "ab')  # killed while writing
    again = Journal(file)
    assert again.get({"prompt": [1], "seed": 1}) == {"choices": [1]}  # whatever the order of keys
    assert again.get({"prompt": [1], "seed": 2}) is None
    again.add({"seed": 3}, {"choices": [3]})
    assert Journal(file).get({"seed": 3}) == {"choices": [3]}


def test_threads_do_not_mix_their_lines(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    threads = [
        threading.Thread(target=journal.add, args=({"seed": i}, {"text": "x" * 5000}))
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Journal(tmp_path / "j.jsonl")
    assert all(again.get({"seed": i}) == {"text": "x" * 5000} for i in range(20))
    again.clear()
    assert again.get({"seed": 1}) is None
    assert Journal(tmp_path / "j.jsonl").get({"seed": 1}) is None
