from pathlib import Path

from clfew.runs.folders import Run, new_run


def test_a_half_written_row_is_removed(tmp_path):
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.log({"step": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    run.keep_metrics_until(2)
    run.log({"step": 3})
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]


def test_a_number_is_not_used_again_while_the_run_made_beside_it_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pretrain-1-scratch", "pretrain-x", "pretrain-", "finetune-7"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert new_run("pretrain").folder == Path("runs/pretrain-2")
